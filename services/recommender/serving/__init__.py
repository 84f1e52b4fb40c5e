"""What a request is served from, and how it is kept current.

Owns the snapshot that requests read (`state`) and the background tasks that replace it: the active release
(`releases`), those of variants beside it (`variant_releases`), the catalogue's columns (`catalogue_refresher`), the
popular and fresh tables (`popular_refresher`). Does not own what those hold (retrieval, catalogue, popular, fresh), nor
which release is active (`shared.storage.deployments`) or wanted beside it (`shared.storage.variant_releases`).
"""

from services.recommender.serving.state import ServingState, StateHolder

__all__ = ["ServingState", "StateHolder"]
