from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.observability.metrics import Metrics
from shared.observability.tasks import RestartBudget, TaskOwner

WAIT_S = 5.0


class Sleeps:
    """Remembers how long it was asked to wait, and does not."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test()

    asyncio.run(bounded())


def test_a_loop_that_dies_is_counted_and_started_again() -> None:
    async def test() -> None:
        metrics, alive, lives = Metrics("t"), asyncio.Event(), 0

        async def work() -> None:
            nonlocal lives
            lives += 1
            if lives < 3:
                raise ValueError("died")
            alive.set()
            await asyncio.Event().wait()

        owner = TaskOwner(metrics=metrics, sleep=Sleeps())
        owner.start("loop", work)
        await alive.wait()
        assert 'silkrec_t_background_deaths_total{task="loop"} 2.0' in metrics.render().decode()
        assert not owner.dead
        await owner.close()

    run(test)


def test_a_loop_that_returns_has_died_too() -> None:
    async def test() -> None:
        sleeps, lives, again = Sleeps(), 0, asyncio.Event()

        async def work() -> None:
            nonlocal lives
            lives += 1
            if lives == 2:
                again.set()

        owner = TaskOwner(sleep=sleeps)
        owner.start("loop", work)
        await again.wait()
        await owner.close()
        assert sleeps.asked

    run(test)


def test_restarts_wait_longer_each_time_and_end_with_the_budget() -> None:
    async def test() -> None:
        sleeps, died = Sleeps(), 0

        async def work() -> None:
            nonlocal died
            died += 1
            raise ValueError("always")

        owner = TaskOwner(budget=RestartBudget(4, 60.0, 1.0, 3.0), sleep=sleeps)
        owner.start("loop", work)
        while not owner.dead:  # noqa: ASYNC110  (the owner has no event for it; run() bounds the wait)
            await asyncio.sleep(0)
        assert owner.dead == {"loop"}
        assert died == 5
        for asked, longest in zip(sleeps.asked, (1.0, 2.0, 3.0, 3.0), strict=True):
            assert longest / 2 <= asked <= longest
        await owner.close()

    run(test)


def test_close_cancels_loops_and_waits_for_their_end() -> None:
    async def test() -> None:
        ended, started = False, asyncio.Event()

        async def work() -> None:
            nonlocal ended
            try:
                started.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended = True

        owner = TaskOwner()
        owner.start("loop", work)
        await started.wait()
        await owner.close()
        assert ended
        with pytest.raises(RuntimeError, match="closed"):
            owner.start("late", work)

    run(test)


def test_one_name_cannot_run_twice() -> None:
    async def test() -> None:
        async def work() -> None:
            await asyncio.Event().wait()

        owner = TaskOwner()
        owner.start("loop", work)
        with pytest.raises(RuntimeError, match="runs"):
            owner.start("loop", work)
        await owner.close()

    run(test)


def test_spawned_work_that_fails_is_counted_and_harms_nobody() -> None:
    async def test() -> None:
        metrics = Metrics("t")

        async def work() -> None:
            raise ValueError("failed")

        owner = TaskOwner(metrics=metrics)
        assert owner.spawn("once", work())
        await owner.close(drain_s=1.0)
        assert 'background_deaths_total{task="once"} 1.0' in metrics.render().decode()

    run(test)


def test_spawned_work_over_the_bound_is_refused() -> None:
    async def test() -> None:
        gate, done = asyncio.Event(), 0

        async def work() -> None:
            nonlocal done
            await gate.wait()
            done += 1

        owner = TaskOwner(max_spawned=2)
        assert [owner.spawn("once", work()) for _ in range(3)] == [True, True, False]
        gate.set()
        await owner.close(drain_s=1.0)
        assert done == 2
        assert not owner.spawn("late", work())

    run(test)


def test_spawned_work_that_never_started_is_closed_without_a_warning() -> None:
    async def test() -> None:
        async def work() -> None:
            await asyncio.Event().wait()

        owner = TaskOwner()
        assert owner.spawn("once", work())
        await owner.close()

    run(test)


def test_a_loop_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    async def test() -> None:
        started = asyncio.Event()

        async def work() -> None:
            try:
                started.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()  # as a library does that takes it for its own time-out

        owner = TaskOwner()
        owner.start("loop", work)
        await started.wait()
        await owner.close()

    run(test)
