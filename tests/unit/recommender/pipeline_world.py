"""The real pipeline and its real components around a hand-made index, user and inference, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from services.recommender.catalogue import Catalogue
from services.recommender.components.side_effects.last_good import LastGoodScores
from services.recommender.domain import FeatureMiss, Promotion, Query, Slate, UserFeatures
from services.recommender.filters import compile_filter
from services.recommender.fresh import FreshTable
from services.recommender.pipeline import Limits, RecommendPipeline
from services.recommender.pipeline.context import Snapshot
from services.recommender.pipeline_wiring import standard_stages
from services.recommender.popular import PopularTable
from services.recommender.retrieval.hits import Hits, no_hits
from shared.contracts.history import Float32, Int32, UserHistory, pack
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.contracts.manifest import ManifestAction, ModelManifest
from shared.schema import ItemField, Scene, Schema
from shared.settings.roots import RecommenderSettings, Settings
from tests.unit.recommender import virtual_time

ITEMS = 60
NOW_US = 1_700_000_000_000_000
USER = "u:ann"
SCHEMA = Schema(
    scenes={"home": Scene(weights={"click": 1.0, "purchase": 4.0})},
    item_fields={"brand": ItemField(type="string")},
)
CLICK, PURCHASE, DISLIKE = 2, 5, 7


@dataclass(frozen=True)
class Row:
    item_index: int
    item_id: str
    price: float | None = None
    known: bool = True
    item_type: str | None = None
    title: str | None = None
    categories: tuple[str, ...] = ()
    is_hidden: bool = False
    available_from_us: int | None = None
    available_until_us: int | None = None
    currency: str | None = None
    created_at_us: int = NOW_US - 100 * 86_400_000_000
    properties: dict[str, Any] = field(default_factory=dict)
    revision: int = 1
    deleted: bool = False


def row(number: int, **changes: Any) -> Row:
    """Prices rise by one; even ones are shoes, odd ones hats; the last five are a day old."""
    created = NOW_US - (1 if number >= ITEMS - 5 else 100) * 86_400_000_000
    base = Row(number, f"item-{number}", float(number), categories=("shoes" if number % 2 == 0 else "hats",))
    return replace(base, created_at_us=created, **changes)


@dataclass
class FakeIndex:
    """By user vector: items 20, 21, …; by items: the twenty after the newest seed."""

    rows_searched: int = ITEMS
    model_version: str | None = "m1"
    has_user_space: bool = True
    error: Exception | None = None
    searched: list[list[int]] = field(default_factory=list)

    def by_user_vector(self, vector: Float32, k: int) -> Hits:
        if self.error is not None:
            raise self.error
        found = np.arange(20, 50, dtype=np.int32)[:k]
        return Hits(found, np.linspace(1, 0, len(found), dtype=np.float32))

    def by_items(self, item_index: Int32, k: int) -> Hits:
        self.searched.append(item_index.tolist())
        if len(item_index) == 0:
            return no_hits()
        found = (int(item_index[0]) + np.arange(1, 21, dtype=np.int32)) % ITEMS
        found = found[~np.isin(found, item_index)][:k].astype(np.int32)
        return Hits(found, np.linspace(1, 0, len(found), dtype=np.float32))

    def vectors(self, item_index: Int32) -> Float32:
        return np.eye(2, dtype=np.float32)[np.asarray(item_index) % 2]


@dataclass
class FakeInference:
    """Purchase probability rises with item_index, so the model's best is the highest index."""

    encode_s: float = 0.001
    rank_s: float = 0.003
    encode_error: BaseException | None = None
    rank_error: BaseException | None = None
    scored: int | None = None
    reason: str = ""
    version: str | None = None
    obeys: bool = True
    encoded: list[EncodeRequest] = field(default_factory=list)
    ranked: list[RankRequest] = field(default_factory=list)
    before_answer: Callable[[], None] | None = None

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        self.encoded.append(request)
        await self._take(self.encode_s)
        if self.encode_error is not None:
            raise self.encode_error
        return EncodeResult(np.ones(8, np.float32), request.model_version)

    async def rank(self, request: RankRequest) -> RankResult:
        self.ranked.append(request)
        await self._take(self.rank_s)
        if self.rank_error is not None:
            raise self.rank_error
        count = len(request.candidate)
        scored = np.arange(count) < (count if self.scored is None else self.scored)
        scores = np.stack([np.full(count, 0.5), (request.candidate + 1) / 1000], axis=1).astype(np.float32)
        if self.before_answer is not None:
            self.before_answer()
        return RankResult(scores * scored[:, None], scored, self.version or request.model_version, self.reason)

    async def _take(self, seconds: float) -> None:
        if self.obeys:
            await asyncio.sleep(seconds)
            return
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:  # what a library does that shields its socket
                continue


@dataclass
class FakeUser:
    features: UserFeatures = field(default_factory=lambda: UserFeatures(UserHistory(USER)))
    takes_s: float = 0.001
    error: Exception | None = None
    asked: int = 0

    async def hydrate(self, query: Query, snapshot: Snapshot, timeout_s: float) -> UserFeatures:
        self.asked += 1
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return self.features


@dataclass
class FakeRedis:
    values: dict[str, bytes] = field(default_factory=dict)
    error: Exception | None = None

    async def set(self, name: str, value: bytes, *, ex: int) -> bool:
        assert ex > 0
        if self.error is not None:
            raise self.error
        self.values[name] = value
        return True


@dataclass
class FakeTasks:
    spawned: list[Coroutine[Any, Any, None]] = field(default_factory=list)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> bool:
        self.spawned.append(work)
        return True


@dataclass
class FakeSnapshot:
    catalogue: Catalogue
    popular: PopularTable
    fresh: FreshTable
    index: FakeIndex | None
    model: ModelManifest | None
    release_name: str = "r1"
    index_version: str | None = "i1"

    @property
    def model_version(self) -> str | None:
        return None if self.model is None else self.model.version


def manifest(version: str = "m1") -> ModelManifest:
    return ModelManifest(
        version=version,
        created_at=datetime(2024, 1, 1, tzinfo=UTC),
        catalogue_version=1,
        architecture={},
        actions=(ManifestAction(name="click", code=CLICK), ManifestAction(name="purchase", code=PURCHASE)),
        vocabulary=ITEMS,
        vector_dim=8,
        feature_schema="",
    )


def catalogue(items: int = ITEMS) -> Catalogue:
    made = Catalogue(SCHEMA)
    made.apply([row(number) for number in range(items)])
    return made


def popularity(items: int = 10) -> PopularTable:
    """item-0 is the most popular, item-9 the last that anybody met."""
    return PopularTable(np.arange(items, dtype=np.int32), np.linspace(10, 1, items, dtype=np.float32), {})


def history(items: list[int], action: int = CLICK) -> UserHistory:
    count = len(items)
    rows = pack(items, [action] * count, [1_699_000_000 + n for n in range(count)])
    return UserHistory(USER, rows, revision=count, last_event_id=f"e-{count}", source="redis")


@dataclass
class World:
    """`run()` serves one query; change the collaborators before."""

    inference: FakeInference = field(default_factory=FakeInference)
    user: FakeUser = field(default_factory=FakeUser)
    redis: FakeRedis = field(default_factory=FakeRedis)
    tasks: FakeTasks = field(default_factory=FakeTasks)
    index: FakeIndex | None = field(default_factory=FakeIndex)
    model: ModelManifest | None = field(default_factory=manifest)
    catalogue: Catalogue = field(default_factory=catalogue)
    popular: PopularTable = field(default_factory=popularity)
    recommender: RecommenderSettings = field(default_factory=RecommenderSettings)
    took_s: float = 0.0
    pipeline: RecommendPipeline | None = None

    def snapshot(self) -> FakeSnapshot:
        fresh = FreshTable.from_catalogue(self.catalogue)
        return FakeSnapshot(self.catalogue, self.popular, fresh, self.index, self.model)

    def make(self, clock: Callable[[], float]) -> RecommendPipeline:
        settings = Settings(data=SCHEMA, recommender=self.recommender)
        kept = LastGoodScores(self.redis, self.tasks, 3600)
        stages = standard_stages(settings, user=self.user, inference=self.inference, side_effects=(kept,))
        limits = Limits(self.recommender.candidates, self.recommender.per_source, 0.006, 0.068)
        snapshot = self.snapshot()
        return RecommendPipeline(stages, current=lambda _query: snapshot, limits=limits, clock=clock)

    def run(self, deadline_s: float = 0.068, **asked: Any) -> Slate:
        return self.run_many(1, deadline_s, **asked)[0]

    def run_many(self, times: int, deadline_s: float = 0.068, **asked: Any) -> list[Slate]:
        async def serve(clock: Callable[[], float]) -> list[Slate]:
            self.pipeline = self.make(clock)
            slates = []
            for _ in range(times):
                begin = clock()
                slates.append(await self.pipeline.run(query(deadline=begin + deadline_s, **asked)))
                self.took_s = clock() - begin
                for work in self.tasks.spawned:
                    await work
                self.tasks.spawned.clear()
            return slates

        return virtual_time.run(serve)


def query(**asked: Any) -> Query:
    base: dict[str, Any] = {
        "user_key": USER,
        "scene": "home",
        "weights": {"click": 1.0, "purchase": 4.0},
        "count": 10,
        "now_us": NOW_US,
        "seed": 7,
    }
    return Query(**{**base, **asked})


def expression(text: str) -> Any:
    return compile_filter(text, SCHEMA)


def promotion(text: str, *, percent: float | None = None, position: int | None = None) -> Promotion:
    return Promotion("sale", expression(text), percent, position)


def items(slate: Slate) -> list[int]:
    return [int(item) for item in slate.items.item_index]


def given_up(slate: Slate) -> set[tuple[str, str, str]]:
    return {(one.stage, one.cause, str(one.fallback)) for one in slate.degraded}


def features(history_of: UserHistory | None = None, **changes: Any) -> UserFeatures:
    return UserFeatures(history_of or UserHistory(USER), **changes)


def miss(store: str, cause: str) -> FeatureMiss:
    return FeatureMiss(store, "history", cause)
