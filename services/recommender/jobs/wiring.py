"""Names the maker of slates that worker processes use."""

from services.recommender.jobs.online_maker import lower_priority
from services.recommender.jobs.online_maker import opened as open_maker

__all__ = ["lower_priority", "open_maker"]
