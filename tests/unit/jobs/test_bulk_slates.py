"""Groups of users through a pipeline that fails as told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.features.reader import UserView
from services.recommender.catalogue import Catalogue, CatalogueRow
from services.recommender.domain import Degradation, Query, Rung, Slate, SlateItems
from services.recommender.jobs.bulk.maker import BulkSlates
from services.recommender.jobs.work import SlateAsk, SlateSpec
from services.recommender.pipeline.context import Snapshot
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving.state import ServingState, StateHolder
from shared.contracts.history import UserHistory
from shared.errors import InferenceUnavailable
from shared.schema import Scene, Schema
from tests.unit.recommender.pipeline_world import row

SCHEMA = Schema(scenes={"home": Scene(weights={"click": 1.0})})
SPEC = SlateSpec("home", 2, now_s=1000, seed=7)


class Reader:
    def __init__(self) -> None:
        self.groups: list[int] = []

    async def users(self, user_keys: Sequence[str]) -> list[UserView]:
        self.groups.append(len(user_keys))
        return [UserView(UserHistory(key), {}, (), {}, ()) for key in user_keys]


@dataclass
class Pipeline:
    """Gives items 1 and 2; `fails` and `degrades` by user."""

    fails: dict[str, Exception] = field(default_factory=dict)
    degrades: dict[str, Degradation] = field(default_factory=dict)
    queries: list[Query] = field(default_factory=list)
    inside: int = 0
    most: int = 0

    async def run(self, query: Query) -> Slate:
        self.queries.append(query)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(0)
        finally:
            self.inside -= 1
        if query.user_key in self.fails:
            raise self.fails[query.user_key]
        gave_up = self.degrades.get(query.user_key)
        items = SlateItems(
            item_index=np.array([1, 2], np.int32),
            score=np.array([0.5, 0.25], np.float32),
            scores=np.empty((2, 0), np.float32),
            source_bits=np.zeros(2, np.int64),
            propensity=np.ones(2),
            reasons=((), ()),
        )
        return Slate(items=items, rung=Rung.MODEL, stage_ms={}, degraded=(gave_up,) if gave_up else (), filtered={})


def maker(pipeline: Pipeline, reader: Reader | None = None) -> BulkSlates:
    catalogue = Catalogue(SCHEMA)
    rows: list[CatalogueRow] = [row(1), row(2)]
    catalogue.apply(rows)
    pipeline_of: Callable[[Snapshot], Pipeline] = lambda _snapshot: pipeline  # noqa: E731
    return BulkSlates(
        holder=StateHolder(ServingState.empty(catalogue)),
        reader=reader or Reader(),
        builder=QueryBuilder(SCHEMA),
        pipeline_of=pipeline_of,
        shipped=lambda _scene: {"exploration": 0.5, "diversity": 0.4},
        group=4,
        under_way=2,
    )


def people(count: int) -> list[SlateAsk]:
    return [SlateAsk(f"u:{n}") for n in range(count)]


def test_users_come_back_in_their_order_in_groups_of_which_a_few_are_under_way() -> None:
    pipeline, reader = Pipeline(), Reader()
    slates = asyncio.run(maker(pipeline, reader).slates(SPEC, people(18)))
    assert [slate.user_key for slate in slates] == [f"u:{n}" for n in range(18)]
    assert sorted(reader.groups) == [2, 4, 4, 4, 4]
    assert 4 <= pipeline.most <= 8


def test_shipped_settings_apply_but_nothing_is_left_to_chance_and_lists_are_ranked_whole() -> None:
    pipeline = Pipeline()
    asks = [SlateAsk("u:1"), SlateAsk("v:2", ("item-2", "item-2", "gone", "item-1"))]
    asyncio.run(maker(pipeline).slates(SPEC, asks))
    slate, ranking = pipeline.queries
    assert (slate.diversity, slate.exploration, slate.input_list, slate.now_us) == (0.4, 0.0, None, 1_000_000_000)
    assert (slate.priority, slate.seed, slate.hide_seen) == (1, 7, True)
    assert ranking.input_list is not None
    assert ranking.input_list.tolist() == [2, 1]
    assert not ranking.hide_seen


def test_one_users_trouble_is_told_in_his_row() -> None:
    pipeline = Pipeline(
        fails={"u:1": RuntimeError("odd")}, degrades={"u:2": Degradation("hydrate.x", "internal", "left_out")}
    )
    slates = asyncio.run(maker(pipeline).slates(SPEC, people(4)))
    assert [slate.error for slate in slates] == [None, "RuntimeError: odd", None, None]
    assert slates[1].item_ids == ()
    assert slates[2].degraded == ("hydrate.x:internal",)


def test_an_engine_that_is_away_fails_the_call_instead_of_its_slates() -> None:
    pipeline = Pipeline(degrades={"u:9": Degradation("rank", InferenceUnavailable.code, "retrieval")})
    with pytest.raises(InferenceUnavailable, match="tried again"):
        asyncio.run(maker(pipeline).slates(SPEC, people(18)))
    assert pipeline.inside == 0
