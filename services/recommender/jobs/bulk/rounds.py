"""What many coroutines ask for in the same rounds of the event loop, asked once.

Pipelines of a group go through their stages side by side, so those that need the engine next ask within a round or two
of each other; once a round has passed in which nobody joined, what came is asked in one call. Nobody has to say how
many will come, and one that needs nothing holds nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class Rounds(Generic[Ask, Answer]):
    """`ask_all` answers in the order of what it gets, an exception where one of them alone failed; what it raises,
    everybody gets. `calls` keeps the calls under way, for `cancelled`. Of one event loop, and one group: two that were
    asked for together would come back together and go on so, and nobody would work while the engine does."""

    def __init__(
        self,
        ask_all: Callable[[Sequence[Ask]], Awaitable[Sequence[Answer | Exception]]],
        calls: set[asyncio.Task[None]],
    ) -> None:
        self._ask_all = ask_all
        self._waiting: list[tuple[Ask, asyncio.Future[Answer]]] = []
        self._calls = calls

    async def ask(self, one: Ask) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((one, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._look, loop, 0)
        return await future

    def _look(self, loop: asyncio.AbstractEventLoop, before: int) -> None:
        if len(self._waiting) > before:
            loop.call_soon(self._look, loop, len(self._waiting))
            return
        asked, self._waiting = self._waiting, []
        call = loop.create_task(self._call(asked))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, asked: Sequence[tuple[Ask, asyncio.Future[Answer]]]) -> None:
        wanted = [(one, future) for one, future in asked if not future.done()]  # who was cancelled needs nothing
        try:
            answers = await self._ask_all([one for one, _ in wanted])
        except asyncio.CancelledError:
            for _, future in wanted:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  (handed to everybody who asked)
            answers = [error] * len(wanted)
        for (_, future), answer in zip(wanted, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


async def cancelled(calls: set[asyncio.Task[None]]) -> None:
    """Ends the calls under way, and so the waiting of whoever asked."""
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
