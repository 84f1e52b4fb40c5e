"""What many coroutines ask in the same rounds is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.recommender.jobs.bulk.rounds import Rounds, cancelled


class Asked:
    """Doubles numbers; `held` keeps the answer back until it is set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.called = asyncio.Event()
        self.held: asyncio.Event | None = None

    async def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.calls.append(list(numbers))
        self.called.set()
        if self.held is not None:
            await self.held.wait()
        if 13 in numbers:
            raise OSError("away")
        return [ValueError("odd") if number % 2 else 2 * number for number in numbers]


async def hops(rounds: Rounds[int, int], number: int) -> int:
    """Asks a few rounds of the loop later than others, as pipelines do."""
    for _ in range(number % 2):
        await asyncio.sleep(0)
    return await rounds.ask(number)


def test_who_asks_side_by_side_is_asked_together_and_gets_his_own_answer() -> None:
    async def scenario() -> None:
        asked = Asked()
        rounds: Rounds[int, int] = Rounds(asked, set())
        answers = await asyncio.gather(*(hops(rounds, n) for n in (2, 5, 4, 8)), return_exceptions=True)
        assert len(asked.calls) == 1
        assert sorted(asked.calls[0]) == [2, 4, 5, 8]
        assert [answers[0], answers[2], answers[3]] == [4, 8, 16]
        assert isinstance(answers[1], ValueError)
        assert await rounds.ask(6) == 12

    asyncio.run(scenario())


def test_a_call_that_fails_fails_for_everybody_in_it() -> None:
    async def scenario() -> None:
        rounds: Rounds[int, int] = Rounds(Asked(), set())
        answers = await asyncio.gather(*(rounds.ask(n) for n in (2, 13)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [OSError, OSError]

    asyncio.run(scenario())


def test_who_was_cancelled_meanwhile_is_left_out_and_holds_nobody_up() -> None:
    async def scenario() -> None:
        asked = Asked()
        rounds: Rounds[int, int] = Rounds(asked, set())
        gone, stays = asyncio.create_task(rounds.ask(2)), asyncio.create_task(rounds.ask(4))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 8
        assert asked.calls == [[4]]

    asyncio.run(scenario())


def test_closing_ends_what_is_under_way() -> None:
    async def scenario() -> None:
        asked = Asked()
        asked.held = asyncio.Event()
        calls: set[asyncio.Task[None]] = set()
        rounds: Rounds[int, int] = Rounds(asked, calls)
        waiting = asyncio.create_task(rounds.ask(2))
        await asked.called.wait()
        await cancelled(calls)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())
