"""The pipeline's concrete components, and their order. `wiring.py` opens what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from redis.asyncio import Redis

from services.features.reader import FeatureReader
from services.recommender.components.fallbacks.batch_slate import BatchSlateFallback
from services.recommender.components.fallbacks.last_good import LastGoodFallback
from services.recommender.components.filters.excluded import ExcludedFilter
from services.recommender.components.filters.expression import RequestFilter, SceneFilter
from services.recommender.components.filters.seen import SeenFilter
from services.recommender.components.filters.servable import ServableFilter
from services.recommender.components.hydrators.item_vectors import ItemVectorHydrator
from services.recommender.components.hydrators.user_features import UserFeaturesHydrator
from services.recommender.components.scorers.inference import Inference, InferenceEncoder, InferenceScorer
from services.recommender.components.selectors.diversity import DiversitySelector
from services.recommender.components.selectors.exploration import ExplorationSelector
from services.recommender.components.selectors.promotions import PromotionSelector
from services.recommender.components.side_effects.last_good import LastGoodScores
from services.recommender.components.sources.batch_slate import BatchSlateSource
from services.recommender.components.sources.behaviour import BehaviourSource
from services.recommender.components.sources.context_items import ContextItemsSource
from services.recommender.components.sources.fresh import FreshSource
from services.recommender.components.sources.input_list import InputListSource
from services.recommender.components.sources.popular import BackfillSource, PopularSource
from services.recommender.components.sources.promoted import PromotedSource
from services.recommender.components.sources.searching import Searcher
from services.recommender.components.sources.user_vector import UserVectorSource
from services.recommender.pipeline import Limits, RecommendPipeline, Stages
from services.recommender.pipeline.context import Snapshot
from services.recommender.pipeline.protocols import SideEffect, UserHydrator
from services.recommender.serving.state import StateHolder
from shared.actions import ActionTable
from shared.observability.tasks import TaskOwner
from shared.settings.roots import RecommenderSettings, Settings


def recommend_pipeline(
    settings: Settings,
    *,
    holder: StateHolder,
    reader: FeatureReader,
    inference: Inference,
    redis_write: Redis,
    tasks: TaskOwner,
) -> RecommendPipeline:
    """One a process."""
    last_good = LastGoodScores(redis_write, tasks, settings.recommender.last_good_ttl_s)
    stages = standard_stages(
        settings, user=UserFeaturesHydrator(reader), inference=inference, side_effects=(last_good,)
    )
    return RecommendPipeline(
        stages, current=lambda query: holder.serving(query.release), limits=limits_of(settings.recommender)
    )


def bulk_pipelines(
    settings: Settings, *, reader: FeatureReader, inference: Callable[[], Inference]
) -> Callable[[Snapshot], RecommendPipeline]:
    """For jobs, one a group of users: the same stages, but nothing stands in for the model (the work is tried again
    instead) and nothing is kept of a slate. A job's features are read before, without the key of the batch slate, so
    that this source is silent. `inference` makes the engine as one group sees it."""
    common = standard_stages(settings, user=UserFeaturesHydrator(reader), inference=inference(), side_effects=())
    limits = limits_of(settings.recommender)

    def of(snapshot: Snapshot) -> RecommendPipeline:
        mine = inference()
        stages = replace(common, encoder=InferenceEncoder(mine), scorer=InferenceScorer(mine), fallbacks=())
        return RecommendPipeline(stages, current=lambda _: snapshot, limits=limits)

    return of


def limits_of(settings: RecommenderSettings) -> Limits:
    return Limits(
        candidates=settings.candidates,
        per_source=settings.per_source,
        reserve_s=settings.reserve_ms / 1000,
        usual_s=settings.deadline_ms / 1000,
    )


def standard_stages(
    settings: Settings, *, user: UserHydrator, inference: Inference, side_effects: tuple[SideEffect, ...]
) -> Stages:
    """The order of sources is the order of bits in journals and of ties in the fusion: add at the end."""
    actions = ActionTable.from_schema(settings.data)
    searcher = Searcher()
    return Stages(
        user=user,
        encoder=InferenceEncoder(inference),
        sources=(
            UserVectorSource(searcher),
            BehaviourSource.of(searcher, actions, settings.recommender.recent_behaviours),
            ContextItemsSource(searcher),
            BatchSlateSource(),
            PopularSource(),
            FreshSource(settings.recommender.fresh_days),
            PromotedSource(),
        ),
        input_source=InputListSource(),
        backfill=BackfillSource(),
        filters=(ServableFilter(), ExcludedFilter(), SeenFilter.of(actions), SceneFilter(), RequestFilter()),
        hydrators=(ItemVectorHydrator(),),
        scorer=InferenceScorer(inference),
        fallbacks=(LastGoodFallback(), BatchSlateFallback()),
        selectors=(DiversitySelector(), PromotionSelector(), ExplorationSelector()),
        side_effects=side_effects,
    )
