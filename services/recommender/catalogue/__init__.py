"""The catalogue in memory: item fields as columns that filters, hydrators and late eligibility read in place.

Owns column layouts and safe growth. Does not own the truth (MySQL) nor refreshing (wiring asks the reader).
"""

from services.recommender.catalogue.columns import MISSING_TIME, Column
from services.recommender.catalogue.rows import CatalogueRow
from services.recommender.catalogue.store import BoundColumn, Catalogue, View

__all__ = ["MISSING_TIME", "BoundColumn", "Catalogue", "CatalogueRow", "Column", "View"]
