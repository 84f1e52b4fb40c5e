"""A late answer that has arrived is taken; lateness of our own is not the store's."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.features.reading.patience import PUNCTUAL_S, StoreLate, within


def test_an_answer_that_comes_up_in_the_same_round_as_the_timer_is_taken() -> None:
    async def scenario() -> str:
        arrived = asyncio.Event()

        async def read() -> str:
            await arrived.wait()
            await asyncio.sleep(0)
            return "answer"

        def long_round() -> None:
            """Longer than the timer, so that both are due when it ends."""
            _busy(0.01)
            arrived.set()

        asyncio.get_running_loop().call_soon(long_round)
        return await within(read(), 0.002)

    assert asyncio.run(scenario()) == "answer"


def test_no_answer_is_the_stores_fault_only_when_we_looked_in_time() -> None:
    async def scenario(busy_s: float) -> bool:
        asyncio.get_running_loop().call_soon(_busy, busy_s)
        with pytest.raises(StoreLate) as caught:
            await within(_never(), 0.01)
        return caught.value.punctual

    assert not asyncio.run(scenario(busy_s=0.02 + PUNCTUAL_S))


def test_what_was_given_up_is_cancelled_and_an_error_is_passed_on() -> None:
    async def scenario() -> None:
        cancelled = asyncio.Event()

        async def read() -> None:
            try:
                await _never()
            finally:
                cancelled.set()

        with pytest.raises(TimeoutError):
            await within(read(), 0.0)
        # A task that never began has nothing to clean up.
        with pytest.raises(TimeoutError):
            await within(read(), 0.001)
        await cancelled.wait()
        with pytest.raises(ConnectionError):
            await within(_broken(), 1.0)

    asyncio.run(scenario())


def _busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def _never() -> None:
    await asyncio.Event().wait()


async def _broken() -> None:
    raise ConnectionError("gone")
