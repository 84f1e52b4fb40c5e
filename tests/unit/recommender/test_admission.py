"""How many pipelines may run at once: everything at light load, as many as the event loop carries under pressure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import chain, repeat

import pytest

from services.recommender.domain import Query, Slate
from services.recommender.metrics import SlateMetrics
from services.recommender.serving import StateHolder
from services.recommender.serving.admission import CONGESTED_S, JUDGED, LEAST, MOST, PERIOD_S, Admission
from services.recommender.serving.slates import SlateServer
from shared.observability.metrics import Metrics
from tests.unit.recommender.pipeline_world import query
from tests.unit.recommender.serving_app import slate_of, state

LATE, ON_TIME = 10 * CONGESTED_S, 0.0


class EnoughTimers(Exception):
    """The test's timers have all fired."""


class Timers:
    """The clock and the sleep of one `run()`: each timer fires as late as the next of `lags` says."""

    def __init__(self, lags: list[float], before_each: Callable[[], None] = lambda: None) -> None:
        self.now = 100.0
        self.before_each = before_each
        self._lags = iter(lags)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds == PERIOD_S
        self.before_each()
        lag = next(self._lags, None)
        if lag is None:
            raise EnoughTimers
        self.now += seconds + lag


def admission_after(lags: list[float], *, inside: int) -> Admission:
    """`inside` pipelines ran all the while, or as many as were let in; they are gone now."""
    timers = Timers(lags)
    admission = Admission(clock=timers.clock, sleep=timers.sleep)

    def fill() -> None:
        while admission.inside < inside and admission.enter():
            pass

    timers.before_each = fill
    with pytest.raises(EnoughTimers):
        asyncio.run(admission.run())
    while admission.inside:
        admission.leave()
    return admission


def admitted(admission: Admission, asked: int) -> int:
    return sum(admission.enter() for _ in range(asked))


@pytest.mark.parametrize("inside", [1, 4, LEAST])
def test_at_light_load_nothing_is_ever_refused_however_late_the_timers_are(inside: int) -> None:
    admission = admission_after([LATE] * 1000, inside=inside)
    assert admission.limit == MOST
    assert admitted(admission, 16) == 16


def test_a_crowd_that_comes_right_after_someone_elses_burst_is_let_in() -> None:
    admission = admission_after([ON_TIME] * 20 + [LATE] * 50, inside=4)
    assert admitted(admission, 64) == 64


@pytest.mark.parametrize("inside", [16, 100])
def test_one_pause_of_any_length_costs_nobody_a_slate(inside: int) -> None:
    admission = admission_after([ON_TIME] * 20 + [2.0] + [ON_TIME] * 20 + [0.3] + [ON_TIME] * 20, inside=inside)
    assert admission.limit == MOST


def test_pauses_that_are_fewer_than_the_timers_on_time_are_no_saturation() -> None:
    admission = admission_after([ON_TIME, LATE, ON_TIME, LATE, ON_TIME] * 100, inside=100)
    assert admission.limit == MOST


def test_the_limit_falls_below_what_was_inside_while_the_loop_is_late() -> None:
    admission = admission_after([LATE] * JUDGED, inside=100)
    assert LEAST < admission.limit < 100
    assert admitted(admission, 100) == admission.limit


def test_a_saturated_loop_reaches_the_floor_within_two_seconds_and_stays_there() -> None:
    timers = int(2.0 / (PERIOD_S + LATE))
    assert admission_after([LATE] * timers, inside=64).limit == LEAST
    assert admission_after([LATE] * 10_000, inside=MOST).limit == LEAST


def test_the_limit_grows_again_once_timers_are_on_time() -> None:
    late, on_time = [LATE] * 100, repeat(ON_TIME, int(2 / PERIOD_S))
    admission = admission_after(list(chain(late, on_time)), inside=64)
    assert admission.limit > 40


def test_who_is_refused_counts_for_nothing_inside() -> None:
    admission = admission_after([LATE] * 1000, inside=64)
    assert admitted(admission, 20) == LEAST
    assert admission.inside == LEAST
    admission.leave()
    assert admission.enter()
    assert not admission.enter()


class WaitingPipeline:
    """Runs until it is let go."""

    def __init__(self) -> None:
        self.running = 0
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, asked: Query) -> Slate:
        self.running += 1
        self.entered.set()
        await self.go.wait()
        return slate_of(asked.exclude, model_version="m-1")


def test_the_refused_get_popular_at_once_and_are_told_why_while_the_others_run() -> None:
    admission = admission_after([LATE] * 1000, inside=64)

    async def scenario() -> None:
        pipeline = WaitingPipeline()
        server = SlateServer(pipeline, StateHolder(state()), SlateMetrics(Metrics("test")), admission=admission)
        deadline = asyncio.get_running_loop().time() + 60.0
        asked = [
            asyncio.ensure_future(server.serve(query(deadline=deadline, seed=n), route="recommend")) for n in range(12)
        ]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.result() for task in done]
        assert pipeline.running == LEAST
        assert len(refused) == 12 - LEAST
        assert {(one.cause, one.fallback) for slate in refused for one in slate.degraded} == {("overloaded", "popular")}
        assert all(len(slate.items) == 10 for slate in refused)
        pipeline.go.set()
        await asyncio.gather(*waiting)
        assert admission.inside == 0

    asyncio.run(scenario())


def test_a_pipeline_that_fails_or_is_cut_off_leaves_its_place() -> None:
    class Broken:
        async def run(self, asked: Query) -> Slate:
            raise RuntimeError("a fault of ours")

    async def scenario() -> None:
        holder, metrics = StateHolder(state()), Metrics("test")
        broken = SlateServer(Broken(), holder, SlateMetrics(metrics))
        deadline = asyncio.get_running_loop().time() + 60.0
        slate = await broken.serve(query(deadline=deadline), route="recommend")
        assert slate.degraded[0].cause == "internal"
        assert broken.admission.inside == 0
        pipeline = WaitingPipeline()
        hanging = SlateServer(pipeline, holder, SlateMetrics(Metrics("test")))
        task = asyncio.ensure_future(hanging.serve(query(deadline=deadline), route="recommend"))
        await pipeline.entered.wait()
        task.cancel()
        await asyncio.wait((task,))
        assert hanging.admission.inside == 0
        await hanging.close()

    asyncio.run(scenario())
