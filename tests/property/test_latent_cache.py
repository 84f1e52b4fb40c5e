"""Whatever happened to a history and to the cache, scores equal those of an engine that keeps nothing (2e-5, fp32)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.counters import CacheCounters
from services.inference.engine.latent_cache import CacheFull, LatentCache
from services.inference.engine.pages import PagePool
from services.inference.engine.request import Float32, InferAnswer, InferRequest, Part
from services.inference.engine.runner import ServingModel
from services.inference.engine.tiers import CacheOptions
from services.inference.model.checkpoint import LoadedModel
from services.inference.model.config import ModelConfig
from services.inference.model.ranker import Ranker
from tests.inference_models import TINY, TINY_MOE, request_of

TOLERANCE = 2e-5
USERS = 4
PAGE_ROWS = 4


def model_of(config: ModelConfig, cache: CacheOptions) -> ServingModel:
    torch.manual_seed(0)
    ranker = Ranker(config).eval()
    with torch.no_grad():
        ranker.heads.residual.weight.normal_(std=0.3)
    ranker.items.freeze()
    loaded = LoadedModel(ranker, config, (("a", 1), ("b", 2)), config.vocabulary, "m-1")
    return ServingModel(loaded, device="cpu", precision="fp32", max_rows=1000, cache=cache)


def kept(config: ModelConfig, pages: int) -> ServingModel:
    """With room for `pages` pages."""
    page_bytes = model_of(config, CacheOptions(page_rows=PAGE_ROWS)).store.page_bytes
    return model_of(config, CacheOptions(page_rows=PAGE_ROWS, device_bytes=(pages + 1) * page_bytes))


def asked(model: ServingModel, *requests: InferRequest) -> list[InferAnswer]:
    parts = [Part(request, 0 if request.candidate is None else len(request.candidate)) for request in requests]
    answers = model.run(parts)
    assert all(isinstance(answer, InferAnswer) for answer in answers)
    return [answer for answer in answers if isinstance(answer, InferAnswer)]


def asked_in_room(model: ServingModel, *requests: InferRequest) -> list[InferAnswer]:
    """One by one when the pages do not suffice for all, as the executor does."""
    try:
        return asked(model, *requests)
    except CacheFull:
        return [asked(model, request)[0] for request in requests]


def numbers(answer: InferAnswer) -> Float32:
    found = answer.scores if answer.user_vector is None else answer.user_vector
    assert found is not None
    return found


def of_user(user: int, request: InferRequest) -> InferRequest:
    return replace(request, user_key=f"u:{user}")


@dataclass
class World:
    """Users whose histories change between requests."""

    random: np.random.Generator
    histories: list[InferRequest]

    def change(self, user: int, how: str) -> None:
        history = self.histories[user]
        rows = len(history.history_item)
        if how == "append":
            new = request_of(self.random, int(self.random.integers(1, 6)), None)
            last = int(history.history_time[-1]) if rows else 0
            self._set(user, _joined(history, new, last))
        elif how == "edit" and rows:
            item = history.history_item.copy()
            item[self.random.integers(rows)] += 1
            self._set(user, replace(history, history_item=item))
        elif how == "retime" and rows:
            time = history.history_time.copy()
            time[self.random.integers(rows)] += 7
            self._set(user, replace(history, history_time=time))
        elif how == "remove" and rows:
            self._take(user, np.delete(np.arange(rows), self.random.integers(rows)))
        elif how == "swap" and rows > 1:
            order = np.arange(rows)
            at = int(self.random.integers(rows - 1))
            order[[at, at + 1]] = order[[at + 1, at]]
            self._take(user, order)
        elif how == "shorten" and rows:
            self._take(user, np.arange(int(self.random.integers(rows))))

    def request(self, user: int, *, encodes: bool) -> InferRequest:
        wanted = None if encodes else request_of(self.random, 0, int(self.random.integers(1, 9))).candidate
        of_job = int(self.random.random() < 0.3)
        return of_user(user, replace(self.histories[user], candidate=wanted, priority=of_job))

    def _take(self, user: int, order: npt.NDArray[np.int64]) -> None:
        history = self.histories[user]
        self._set(
            user,
            replace(
                history,
                history_item=history.history_item[order],
                history_action=history.history_action[order],
                history_time=history.history_time[order],
            ),
        )

    def _set(self, user: int, history: InferRequest) -> None:
        self.histories[user] = history


def _joined(history: InferRequest, new: InferRequest, last: int) -> InferRequest:
    return replace(
        history,
        history_item=np.concatenate((history.history_item, new.history_item)),
        history_action=np.concatenate((history.history_action, new.history_action)),
        history_time=np.concatenate((history.history_time, new.history_time + last)),
    )


changes = st.sampled_from(["append", "append", "append", "edit", "retime", "remove", "swap", "shorten", "nothing"])
turns = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, USERS - 1), changes, st.booleans()), min_size=1, max_size=5),
        st.sampled_from(["", "", "", "forget", "clear", "restart"]),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module", params=["dense", "mixture"])
def pair(request: pytest.FixtureRequest) -> tuple[ServingModel, ServingModel]:
    """Room for about two of four users at their longest; and a model that keeps nothing."""
    config = TINY if request.param == "dense" else TINY_MOE
    return kept(config, 24), model_of(config, CacheOptions(enabled=False))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), script=turns, absorbed=st.booleans())
def test_scores_from_cached_latents_equal_those_that_are_computed_anew(
    pair: tuple[ServingModel, ServingModel], seed: int, script: Sequence[tuple[list[tuple[int, str, bool]], str]],
    absorbed: bool,
) -> None:  # fmt: skip
    caching, plain = pair
    random = np.random.default_rng(seed)
    world = World(random, [request_of(random, int(random.integers(0, 60)), None) for _ in range(USERS)])
    caching.cache.reset()
    caching.ops.absorb_below = 1 << 30 if absorbed else 0
    for batch, event in script:
        requests = []
        for user, how, encodes in batch:
            world.change(user, how)
            requests.append(world.request(user, encodes=encodes))
        for mine, reference in zip(asked_in_room(caching, *requests), asked(plain, *requests), strict=True):
            np.testing.assert_allclose(numbers(mine), numbers(reference), atol=TOLERANCE)
            assert reference.cached_events == 0
        assert caching.cache.check_integrity() == []
        if event == "forget":
            caching.cache.forget(f"u:{batch[0][0]}")
        elif event == "clear":
            caching.cache.clear()
        elif event == "restart":
            caching.cache.reset()
        assert caching.cache.check_integrity() == []


def test_only_new_events_are_computed_when_a_user_returns() -> None:
    model = kept(TINY, 64)
    random = np.random.default_rng(1)
    first = of_user(0, request_of(random, 30, 5))
    assert asked(model, first)[0].cached_events == 0
    assert model.rows_of(first) == (0, 30)
    longer = _joined(first, request_of(random, 3, None), int(first.history_time[-1]))
    assert asked(model, longer)[0].cached_events == 30
    assert model.cache.counters.built_rows == 33


def test_an_edit_keeps_the_prefix_before_it_and_is_counted() -> None:
    model = kept(TINY, 64)
    first = of_user(0, request_of(np.random.default_rng(2), 30, 5))
    asked(model, first)
    item = first.history_item.copy()
    item[20] = (item[20] + 1) % TINY.vocabulary
    assert asked(model, replace(first, history_item=item))[0].cached_events == 20
    assert model.cache.counters.stale_rejects == 1


def test_a_request_that_is_sent_twice_in_a_batch_is_built_once() -> None:
    model = kept(TINY, 64)
    first = of_user(0, request_of(np.random.default_rng(3), 30, 5))
    one, other = asked(model, first, first)
    assert (one.cached_events, other.cached_events) == (0, 30)
    np.testing.assert_allclose(numbers(one), numbers(other), atol=TOLERANCE)
    assert model.cache.counters.built_rows == 30


def test_beyond_the_cap_a_history_is_rebuilt_once_a_chunk_and_not_at_each_event() -> None:
    model = kept(TINY, 64)
    random = np.random.default_rng(4)
    history = of_user(0, request_of(random, TINY.max_history + 20, None))
    rebuilt = 0
    for _ in range(40):
        history = _joined(history, request_of(random, 1, None), int(history.history_time[-1]))
        rebuilt += asked(model, history)[0].cached_events == 0
    assert 1 <= rebuilt <= 12  # the window begins anew when its first row falls out: every fifth event on average


def test_content_of_a_new_item_reaches_histories_that_have_it() -> None:
    model = kept(TINY, 64)
    unknown = TINY.vocabulary + 3
    request = of_user(0, request_of(np.random.default_rng(5), 10, 3))
    item = request.history_item.copy()
    item[5] = unknown
    request = replace(request, history_item=item)
    before = numbers(asked(model, request)[0])
    assert model.upsert(unknown, (1, 2))
    assert not model.upsert(unknown, (3,))
    answer = asked(model, request)[0]
    assert answer.cached_events == 5
    assert not np.allclose(numbers(answer), before, atol=1e-4)


def test_a_batch_that_needs_more_pages_than_there_are_says_so_and_leaves_nothing_behind() -> None:
    model = kept(TINY, 12)
    random = np.random.default_rng(6)
    requests = [of_user(user, request_of(random, 30, 2)) for user in range(3)]
    with pytest.raises(CacheFull):
        asked(model, *requests)
    assert model.cache.check_integrity() == []
    assert len(model.cache) == 0
    assert asked(model, requests[0])[0].scores is not None


class Pages:
    """A mover that remembers which page of which tier holds what."""

    def __init__(self) -> None:
        self.moved: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def demote(self, device: list[int], host: list[int]) -> None:
        self.moved.append(("demote", tuple(device), tuple(host)))

    def promote(self, host: list[int], device: list[int]) -> None:
        self.moved.append(("promote", tuple(host), tuple(device)))


def test_what_a_slates_second_trip_finds_of_its_first_is_no_hit() -> None:
    counters = CacheCounters()
    cache = LatentCache(PagePool(1), PagePool(0), PAGE_ROWS, Pages(), counters)

    def slate(user: int) -> None:
        digest = np.arange(1, 5, dtype=np.uint64) * (user + 1)
        for ranks in (False, True):
            cache.begin()
            cache.place(f"u:{user}", digest, 0, now=0.0, pin_until=0.0, ranks=ranks)
            cache.finish()

    for user in (0, 1, 0, 1):
        slate(user)
    assert (counters.device_hit_rows, counters.built_rows) == (0, 16), "a cache for one user helps two of them nothing"
    slate(1)
    assert (counters.device_hit_rows, counters.built_rows) == (4, 16)
    cache.begin()
    cache.place("u:1", np.arange(1, 5, dtype=np.uint64) * 2, 0, now=0.0, pin_until=0.0, ranks=True)
    assert counters.device_hit_rows == 8, "a rank that nobody encoded for"


def test_users_that_leave_the_device_come_back_from_the_host_tier() -> None:
    mover, counters = Pages(), CacheCounters()
    cache = LatentCache(PagePool(2), PagePool(4), PAGE_ROWS, mover, counters)
    digest = {user: np.arange(1, 9, dtype=np.uint64) * (user + 1) for user in range(2)}
    for user in (0, 1, 0):
        cache.begin()
        placed = cache.place(f"u:{user}", digest[user], 0, now=0.0, pin_until=0.0)
        cache.finish()
        assert cache.check_integrity() == []
    assert placed.cached == 8
    assert [kind for kind, _, _ in mover.moved] == ["demote", "demote", "promote"]
    assert mover.moved[0][2] == mover.moved[2][1]
    assert (counters.host_hit_rows, counters.evictions) == (8, 2)


def test_a_user_whose_deadline_still_runs_is_evicted_last() -> None:
    cache = LatentCache(PagePool(4), PagePool(0), PAGE_ROWS, Pages(), CacheCounters())
    digests = {user: np.arange(1, 9, dtype=np.uint64) * (user + 1) for user in range(3)}
    for user, pin_until in ((0, 9.0), (1, 0.0), (2, 0.0)):
        cache.begin()
        cache.place(f"u:{user}", digests[user], 0, now=1.0, pin_until=pin_until)
        cache.finish()
    assert [cache.cached_rows(f"u:{user}") for user in range(3)] == [8, 0, 8]


def test_a_job_passes_by_without_pushing_anybody_out() -> None:
    model = kept(TINY, 24)
    random = np.random.default_rng(4)
    guest = of_user(0, request_of(random, 30, 5))
    asked(model, guest)
    for user in range(1, 40):
        encoding = replace(of_user(user, request_of(random, 30, None)), priority=1)
        assert asked(model, encoding)[0].cached_events == 0
        assert asked(model, replace(encoding, candidate=guest.candidate))[0].cached_events == 30
        assert len(model.cache) == 1  # nobody asks for this user a third time
    for user in range(1, 40):  # without the ranking, they make room for each other
        asked(model, replace(of_user(user, request_of(random, 30, None)), priority=1))
    assert asked(model, guest)[0].cached_events == 30
    assert model.cache.check_integrity() == []


def test_a_user_of_a_job_who_comes_in_person_stays() -> None:
    model = kept(TINY, 24)
    encoding = of_user(0, request_of(np.random.default_rng(4), 30, None))
    asked(model, replace(encoding, priority=1))
    asked(model, encoding)
    asked(model, replace(encoding, priority=1, candidate=np.arange(3, dtype=np.int32)))
    assert asked(model, encoding)[0].cached_events == 30


def test_a_cache_that_contradicts_itself_is_noticed() -> None:
    cache = LatentCache(PagePool(4), PagePool(0), PAGE_ROWS, Pages(), CacheCounters())
    cache.begin()
    cache.place("u:0", np.arange(1, 9, dtype=np.uint64), 0, now=0.0, pin_until=0.0)
    cache.finish()
    cache.pool.give([0])
    assert cache.check_integrity()
    cache.reset()
    assert cache.check_integrity() == []
