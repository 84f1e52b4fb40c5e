"""The engine over small models with random weights, and over a model that the test makes slow or broken."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.cost_model import CostModel
from services.inference.engine.counters import CacheCounters
from services.inference.engine.digest import row_hashes, window_start
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferAnswer, InferRequest, Part
from services.inference.engine.runner import ServingModel
from services.inference.engine.scheduler import BatchPolicy
from services.inference.model import checkpoint
from shared.contracts.manifest import ModelManifest
from shared.errors import ArtifactError, DeadlineExceeded, InferenceUnavailable, NotFound, Overloaded, SilkrecError
from shared.storage.artifacts import ArtifactStore
from tests.inference_models import TINY, TINY_MOE, engine_of, publish, request_of

TOLERANCE = 2e-5
NO_DELAY = BatchPolicy(max_queue_delay_s=0.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of(tmp_path_factory.mktemp("models")) as running:
        yield running


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of(tmp_path_factory.mktemp("models"), TINY_MOE) as running:
        yield running


def ask(engine: Engine, *requests: InferRequest) -> list[InferAnswer]:
    """All at once, so that they share batches."""

    async def together() -> list[InferAnswer]:
        return await asyncio.gather(*(engine.infer(request) for request in requests))

    return asyncio.run(together())


def scores_of(engine: Engine, *requests: InferRequest) -> list[np.ndarray]:
    found = []
    for answer in ask(engine, *requests):
        assert answer.scores is not None
        assert answer.scored is not None
        assert answer.scored.all()
        found.append(answer.scores)
    return found


sizes = st.tuples(st.integers(0, 60), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), sizes, st.lists(sizes, max_size=6))
def test_a_score_does_not_depend_on_who_shares_the_batch(
    engine: Engine, seed: int, mine: tuple[int, int], others: list[tuple[int, int]]
) -> None:
    random = np.random.default_rng(seed)
    request = request_of(random, *mine)
    company = [request_of(random, *size) for size in others]
    alone = scores_of(engine, request)[0]
    together = scores_of(engine, *company, request)[-1]
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), sizes, st.data())
def test_a_score_does_not_depend_on_the_other_candidates_or_their_order(
    engine: Engine, seed: int, size: tuple[int, int], data: st.DataObject
) -> None:
    request = request_of(np.random.default_rng(seed), *size)
    assert request.candidate is not None
    order = np.asarray(data.draw(st.permutations(range(size[1]))))
    kept = order[: data.draw(st.integers(1, size[1]))]
    whole = scores_of(engine, request)[0]
    part = scores_of(engine, replace(request, candidate=request.candidate[kept]))[0]
    np.testing.assert_allclose(part, whole[kept], atol=TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.lists(sizes, min_size=2, max_size=5))
def test_the_same_holds_for_a_mixture_of_experts(mixture: Engine, seed: int, several: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(seed)
    requests = [request_of(random, *size) for size in several]
    for request, together in zip(requests, scores_of(mixture, *requests), strict=True):
        np.testing.assert_allclose(scores_of(mixture, request)[0], together, atol=TOLERANCE)


def test_a_user_vector_has_the_models_dimensions_and_does_not_depend_on_company(engine: Engine) -> None:
    random = np.random.default_rng(0)
    requests = [request_of(random, rows, None) for rows in (0, 1, 17, 40, 90)]
    for request, together in zip(requests, ask(engine, *requests), strict=True):
        (alone,) = ask(engine, request)
        assert together.user_vector is not None
        assert together.user_vector.shape == (TINY.vector_dim,)
        assert together.user_vector.dtype == np.float32
        assert together.scores is None
        assert alone.user_vector is not None
        np.testing.assert_allclose(together.user_vector, alone.user_vector, atol=TOLERANCE)


def test_a_bias_is_one_more_dimension_of_the_user_vector(tmp_path: Path) -> None:
    with engine_of(tmp_path, replace(TINY, item_bias=True)) as biased:
        (answer,) = ask(biased, request_of(np.random.default_rng(0), 3, None))
    assert answer.user_vector is not None
    assert answer.user_vector.shape == (TINY.d_model + 1,)
    assert answer.user_vector[-1] == 1.0


def test_of_a_long_history_a_window_of_the_newest_rows_counts(engine: Engine) -> None:
    long = request_of(np.random.default_rng(1), 300, 20)
    rows = window_of(long, TINY.max_history)
    assert 3 * TINY.max_history // 4 <= rows <= TINY.max_history
    np.testing.assert_allclose(scores_of(engine, long)[0], scores_of(engine, long.newest(rows))[0], atol=TOLERANCE)


def window_of(request: InferRequest, cap: int) -> int:
    hashes = row_hashes(request.history_item, request.history_action, request.history_time)
    return len(hashes) - window_start(hashes, cap)


def test_the_services_own_cap_shortens_histories_further(tmp_path: Path) -> None:
    publish(ArtifactStore(tmp_path), "m-1")
    capped = Engine(EngineOptions(threads=1, max_rows=8))
    capped.start()
    try:
        capped.load(ArtifactStore(tmp_path).open_folder(ModelManifest, "m-1")[0])
        long = request_of(np.random.default_rng(1), 40, 5)
        short = long.newest(window_of(long, 8))
        np.testing.assert_allclose(scores_of(capped, long)[0], scores_of(capped, short)[0], atol=TOLERANCE)
    finally:
        capped.stop()


def test_an_unknown_user_without_history_is_scored(engine: Engine) -> None:
    scores = scores_of(engine, request_of(np.random.default_rng(2), 0, 30))[0]
    assert np.isfinite(scores).all()
    assert ((scores > 0) & (scores < 1)).all()


def test_every_item_beyond_the_vocabulary_is_the_same_unknown_item(engine: Engine) -> None:
    candidate = np.asarray([TINY.vocabulary, TINY.vocabulary + 1, 2**31 - 1, -1, -(2**31)], np.int32)
    request = replace(request_of(np.random.default_rng(3), 10, 1), candidate=candidate)
    scores = scores_of(engine, request)[0]
    np.testing.assert_allclose(scores, np.repeat(scores[:1], len(candidate), axis=0), atol=TOLERANCE)


def test_any_action_code_and_any_time_give_finite_scores(engine: Engine) -> None:
    request = request_of(np.random.default_rng(4), 256, 10)
    extremes = np.asarray([-(2**63), 2**63 - 1, 0, -1], np.int64)
    wild = replace(
        request,
        history_action=np.arange(-128, 128, dtype=np.int8),
        history_time=np.resize(extremes, 256),
        request_time_s=2**63 - 1,
    )
    assert np.isfinite(scores_of(engine, wild)[0]).all()


def test_waits_of_jobs_are_none_of_the_engines_waits(tmp_path: Path) -> None:
    """They are as long as people leave little, and would otherwise scale a cluster out."""
    request = request_of(np.random.default_rng(4), 3, 5)
    with engine_of(tmp_path, TINY) as fresh:
        ask(fresh, replace(request, priority=1))
        ask(fresh, request)
        counted, end = fresh.counters, time.monotonic() + 5
        while sum(counted.batch_size.counts) < 2 or sum(counted.slack_s.counts) == 0:
            assert time.monotonic() < end, "a batch is counted behind its answers"
            time.sleep(0.001)
        assert [sum(one.counts) for one in (counted.batch_size, counted.queue_s, counted.slack_s)] == [2, 1, 1]


def test_no_candidates_give_no_scores_and_no_reason(engine: Engine) -> None:
    (answer,) = ask(engine, request_of(np.random.default_rng(5), 10, 0))
    assert answer.scores is not None
    assert answer.scores.shape == (0, len(TINY.actions))
    assert answer.reason == ""


@pytest.mark.parametrize("count", [1, 500, 5000])
def test_hundreds_and_thousands_of_candidates_are_all_scored(engine: Engine, count: int) -> None:
    assert scores_of(engine, request_of(np.random.default_rng(6), 40, count))[0].shape == (count, len(TINY.actions))


def test_encoding_past_its_deadline_is_an_error(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        ask(engine, request_of(np.random.default_rng(7), 10, None, deadline_us=0))


def test_a_short_deadline_keeps_the_first_candidates(engine: Engine) -> None:
    model = engine.slot.active
    assert model is not None
    request = request_of(np.random.default_rng(8), 40, 200_000, deadline_us=20_000)
    (answer,) = ask(engine, request)
    assert answer.scored is not None
    assert answer.scores is not None
    count = int(answer.scored.sum())
    assert count < 200_000
    assert answer.scored[:count].all()
    assert not answer.scores[count:].any()
    assert answer.reason == "deadline"


@dataclass(frozen=True, eq=False)
class HeldFlight:
    parts: Sequence[Part]
    copied: None = None
    is_done: bool = True


class NoCache:
    def reset(self) -> None:
        """There is nothing to forget."""

    def check_integrity(self) -> list[str]:
        return []


@dataclass(eq=False)
class HeldModel:
    """Runs when the test lets it, and remembers what it ran. `faults`: what the next runs raise."""

    version: str = "held"
    max_rows: int = 100
    actions: tuple[tuple[str, int], ...] = (("click", 1),)
    cost: CostModel = field(default_factory=CostModel)
    entered: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    ran: list[str] = field(default_factory=list)
    bad_user: str = ""
    cache: NoCache = field(default_factory=NoCache)

    def rows_of(self, payload: object) -> tuple[int, int]:
        return len(cast("InferRequest", payload).history_item), 0

    def run(self, parts: Sequence[Part]) -> list[InferAnswer | SilkrecError]:
        return self.land(self.launch(parts))

    def launch(self, parts: Sequence[Part]) -> HeldFlight:
        return HeldFlight(parts)

    def land(self, flight: HeldFlight) -> list[InferAnswer | SilkrecError]:
        parts = flight.parts
        self.entered.set()
        assert self.go.wait(20)
        users = [part.request.user_key for part in parts]
        self.ran += users
        if self.bad_user in users:
            raise RuntimeError("a kernel failed")
        return [self.unscored(part.request, "") for part in parts]

    def unscored(self, request: InferRequest, reason: str) -> InferAnswer:
        total = 0 if request.candidate is None else len(request.candidate)
        return InferAnswer(
            self.version, scores=np.zeros((total, 1), np.float32), scored=np.zeros(total, np.bool_), reason=reason
        )


@pytest.fixture
def held() -> Iterator[tuple[Engine, HeldModel]]:
    running = Engine(EngineOptions(policy=replace(NO_DELAY, max_queue_size=2), threads=1))
    running.start()
    model = HeldModel(bad_user="nobody")
    running.slot.install(cast("ServingModel", model))
    try:
        yield running, model
    finally:
        model.go.set()
        running.stop()


def user(name: str, *, deadline_us: int = 5_000_000) -> InferRequest:
    return replace(request_of(np.random.default_rng(9), 3, 4, deadline_us=deadline_us), user_key=name)


async def occupied(engine: Engine, model: HeldModel) -> asyncio.Task[InferAnswer]:
    """A request that is on the device and stays there."""
    first = asyncio.create_task(engine.infer(user("first")))
    await asyncio.to_thread(model.entered.wait, 10)
    return first


@pytest.mark.parametrize("deadline_us", [0, -5, -(2**62)])
def test_a_deadline_that_has_passed_is_answered_unscored_at_once(
    held: tuple[Engine, HeldModel], deadline_us: int
) -> None:
    engine, model = held
    answer = asyncio.run(engine.infer(user("late", deadline_us=deadline_us)))
    assert answer.scored is not None
    assert answer.scored.tolist() == [False] * 4
    assert answer.reason == "deadline"
    assert not model.entered.is_set()


def test_while_the_device_is_busy_a_deadline_still_holds(held: tuple[Engine, HeldModel]) -> None:
    engine, model = held

    async def scenario() -> tuple[InferAnswer, float]:
        first = await occupied(engine, model)
        begin = time.monotonic()
        answer = await engine.infer(user("waiting", deadline_us=30_000))
        seconds = time.monotonic() - begin
        model.go.set()
        await first
        return answer, seconds

    answer, seconds = asyncio.run(scenario())
    assert answer.reason == "deadline"
    assert seconds < 1.0  # the device was busy for as long as the test liked
    assert model.ran == ["first"]


def test_even_a_request_on_the_device_is_answered_at_its_deadline(held: tuple[Engine, HeldModel]) -> None:
    engine, model = held
    answer = asyncio.run(engine.infer(user("stuck", deadline_us=50_000)))
    assert answer.reason == "deadline"
    assert model.entered.is_set()


def test_a_cancelled_request_never_reaches_the_device(held: tuple[Engine, HeldModel]) -> None:
    engine, model = held

    async def scenario() -> None:
        first = await occupied(engine, model)
        gone = asyncio.create_task(engine.infer(user("gone")))
        last = asyncio.create_task(engine.infer(user("last")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        model.go.set()
        await asyncio.gather(first, last)

    asyncio.run(scenario())
    assert model.ran == ["first", "last"]
    assert engine.counters.outcomes["cancelled"] == 1


def test_a_full_queue_refuses_at_once(held: tuple[Engine, HeldModel]) -> None:
    engine, model = held

    async def scenario() -> None:
        first = await occupied(engine, model)
        waiting = [asyncio.create_task(engine.infer(user(str(i)))) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await engine.infer(user("one too many"))
        model.go.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(scenario())
    assert engine.counters.outcomes["overloaded"] == 1


def test_a_request_that_breaks_the_model_does_not_take_its_neighbours_with_it(held: tuple[Engine, HeldModel]) -> None:
    engine, model = held
    model.bad_user = "bad"

    async def scenario() -> list[InferAnswer | BaseException]:
        first = await occupied(engine, model)
        both = [asyncio.create_task(engine.infer(user(name))) for name in ("bad", "good")]
        await asyncio.sleep(0)
        model.go.set()
        await first
        return await asyncio.gather(*both, return_exceptions=True)

    bad, good = asyncio.run(scenario())
    assert isinstance(bad, SilkrecError)
    assert isinstance(good, InferAnswer)
    assert engine.counters.batches_retried == 1
    assert engine.alive


def test_stopping_answers_what_still_waits(held: tuple[Engine, HeldModel]) -> None:
    engine, model = held

    async def scenario() -> tuple[InferAnswer | BaseException, InferAnswer | BaseException]:
        first = await occupied(engine, model)
        waiting = asyncio.create_task(engine.infer(user("waiting")))
        await asyncio.sleep(0)
        engine.stop(0.0)
        model.go.set()
        await asyncio.to_thread(engine.stop)
        return await asyncio.gather(first, waiting, return_exceptions=True)

    first, waiting = asyncio.run(scenario())
    assert isinstance(first, InferAnswer)
    assert isinstance(waiting, InferenceUnavailable)
    with pytest.raises(InferenceUnavailable):
        asyncio.run(engine.infer(user("later")))


def test_before_the_first_model_every_request_is_refused_at_once() -> None:
    empty = Engine(EngineOptions(threads=1))
    empty.start()
    try:
        with pytest.raises(InferenceUnavailable, match="no model"):
            asyncio.run(empty.infer(user("anyone")))
    finally:
        empty.stop()


def test_a_request_on_the_device_finishes_on_its_model_while_another_takes_over(
    held: tuple[Engine, HeldModel], tmp_path: Path
) -> None:
    engine, model = held

    async def scenario() -> tuple[InferAnswer, InferAnswer]:
        first = await occupied(engine, model)
        store = ArtifactStore(tmp_path)
        publish(store, "m-2")
        loading = asyncio.create_task(asyncio.to_thread(engine.load, store.open_folder(ModelManifest, "m-2")[0]))
        model.go.set()
        await loading
        return await first, await engine.infer(user("next"))

    first, after = asyncio.run(scenario())
    assert (first.model_version, after.model_version) == ("held", "m-2")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def two_models(root: Path, clock: Clock) -> Engine:
    store = ArtifactStore(root)
    engine = Engine(EngineOptions(threads=1, keep_previous_s=60.0), clock)
    engine.start()
    for seed, version in enumerate(("m-1", "m-2")):
        publish(store, version, seed=seed)
        engine.load(store.open_folder(ModelManifest, version)[0])
    return engine


def test_the_model_before_answers_those_who_name_it_for_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    engine = two_models(tmp_path, clock)
    request = request_of(np.random.default_rng(1), 10, 5)
    try:
        new, old, named = ask(
            engine, request, replace(request, model_version="m-1"), replace(request, model_version="m-2")
        )
        assert [answer.model_version for answer in (new, old, named)] == ["m-2", "m-1", "m-2"]
        assert new.scores is not None
        assert old.scores is not None
        assert not np.allclose(new.scores, old.scores)
        clock.now += 59.9
        assert engine.slot.versions() == ("m-2", "m-1")
        clock.now += 0.2
        with pytest.raises(NotFound):
            ask(engine, replace(request, model_version="m-1"))
    finally:
        engine.stop()


def test_a_roll_back_within_the_minute_loads_nothing(tmp_path: Path) -> None:
    clock = Clock()
    engine = two_models(tmp_path, clock)
    try:
        before = engine.slot.resolve("m-1")
        assert not engine.restore("m-0")
        assert engine.restore("m-1")
        assert engine.slot.active is before
        assert engine.slot.versions() == ("m-1", "m-2")
        clock.now += 61
        assert engine.slot.expire()
        assert not engine.restore("m-2")
    finally:
        engine.stop()


def test_a_dropped_models_memory_is_given_back_without_the_collector(tmp_path: Path) -> None:
    clock = Clock()
    engine = two_models(tmp_path, clock)
    try:
        ranker = weakref.ref(engine.slot.resolve("m-1").ranker)
        assert ranker() is not None
        gc.disable()
        clock.now += 61
        assert engine.slot.expire()
        assert ranker() is None
    finally:
        gc.enable()
        gc.unfreeze()
        engine.stop()


def test_warm_up_leaves_the_caches_counters_at_zero(tmp_path: Path) -> None:
    with engine_of(tmp_path) as fresh:
        request = replace(request_of(np.random.default_rng(1), 10, 5), user_key="u:1")
        assert fresh.counters.cache == CacheCounters()
        scores_of(fresh, request)
        scores_of(fresh, request)
        assert fresh.counters.cache == CacheCounters(device_hit_rows=10, built_rows=10)


def test_an_idle_engine_empties_a_cache_that_contradicts_itself(tmp_path: Path) -> None:
    clock = Clock()
    engine = two_models(tmp_path, clock)
    request = replace(request_of(np.random.default_rng(1), 10, 5), user_key="u:1")
    try:
        before = scores_of(engine, request)[0]
        model = engine.slot.resolve("m-2")
        assert asyncio.run(engine.check_integrity()) == []
        model.cache.pool.give([0])
        assert asyncio.run(engine.check_integrity()) != []
        clock.now += 31
        deadline = time.monotonic() + 20
        while engine.counters.integrity_faults == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert asyncio.run(engine.check_integrity()) == []
        np.testing.assert_allclose(scores_of(engine, request)[0], before, atol=TOLERANCE)
    finally:
        engine.stop()


def damaged(folder: Path, how: str) -> None:
    manifest = folder / "manifest.json"
    weights = folder / checkpoint.WEIGHTS
    content = json.loads(manifest.read_text("utf-8"))
    if how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "noise":
        weights.write_bytes(np.random.default_rng(0).bytes(5000))
    elif how == "no manifest":
        manifest.unlink()
    elif how == "no JSON":
        manifest.write_text("{", "utf-8")
    elif how == "another width":
        content["architecture"]["d_model"] = 32
        manifest.write_text(json.dumps(content), "utf-8")
    elif how == "a width that no memory holds":
        content["architecture"]["vocabulary"] = 2**50
        manifest.write_text(json.dumps(content), "utf-8")
    elif how == "an architecture of tomorrow":
        content["architecture"]["hyper_attention"] = True
        manifest.write_text(json.dumps(content), "utf-8")
    elif how == "other actions":
        content["actions"] = content["actions"][:1]
        manifest.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    "how",
    [
        "no weights",
        "truncated weights",
        "noise",
        "no manifest",
        "no JSON",
        "another width",
        "a width that no memory holds",
        "an architecture of tomorrow",
        "other actions",
    ],
)
def test_a_damaged_model_never_replaces_a_good_one(engine: Engine, tmp_path: Path, how: str) -> None:
    store = ArtifactStore(tmp_path)
    publish(store, "m-bad")
    folder = store.folder(ModelManifest, "m-bad")
    damaged(folder, how)
    refused = engine.counters.models_refused
    with pytest.raises(ArtifactError):
        engine.load(folder)
    assert engine.counters.models_refused == refused + 1
    assert engine.slot.versions() == ("m-1",)
    assert scores_of(engine, request_of(np.random.default_rng(1), 10, 5))[0].shape == (5, 2)


def test_a_model_that_gives_nan_is_refused_at_warm_up(engine: Engine, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    publish(store, "m-nan", broken=True)
    with pytest.raises(ArtifactError, match="finite"):
        engine.load(store.folder(ModelManifest, "m-nan"))
    assert engine.slot.versions() == ("m-1",)


def test_an_engine_that_believes_to_be_too_slow_for_anybody_finds_out(tmp_path: Path) -> None:
    """As after a warm-up on a machine that was busy. Refused requests alone would teach it nothing."""
    random = np.random.default_rng(0)
    with engine_of(tmp_path) as running:
        model = running.slot.active
        assert model is not None
        model.cost.weights = [weight * 1000 + 1.0 for weight in model.cost.weights]

        async def until_whole() -> int:
            for asked in range(600):
                answer = await running.infer(replace(request_of(random, 20, 20), deadline_us=500_000))
                if answer.scored is not None and answer.scored.all():
                    return asked
                await asyncio.sleep(0.01)
            raise AssertionError("nobody was ever served")

        assert asyncio.run(until_whole()) > 0
