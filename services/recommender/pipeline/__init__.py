"""How a slate is made: the order of stages, what each may take of the deadline, and what happens when one fails.

Owns order, budgets, degradation, timing and counting. Knows stages by their protocols only: no component, no store, no
network library is imported here, and no component knows another. `RecommendPipeline.run(query)` is the one entry, for
/v1/recommend and, with `query.input_list`, for /v1/rank.
"""

from services.recommender.pipeline.protocols import Stages
from services.recommender.pipeline.runner import Limits, RecommendPipeline

__all__ = ["Limits", "RecommendPipeline", "Stages"]
