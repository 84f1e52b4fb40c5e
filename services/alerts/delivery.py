"""Brings a message to every robot: tries within a budget, no robot twice, no more a minute than the vendor takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx
import orjson

from services.alerts.message import Message
from services.alerts.metrics import DeliveryMetrics
from services.alerts.robots import Robot, Verdict, verdict
from shared.errors import DependencyError
from shared.observability.logging import get_logger

ATTEMPTS = 3
FIRST_WAIT_S = 0.5
CALL_TIMEOUT_S = 5.0
REMEMBERED_S = 300.0
"""Alertmanager tries a group again within a minute of our 503, and repeats what was taken after an hour at the
earliest."""
_SPARE = 2
"""Of a robot's messages a minute, left to whoever else uses it: beyond 20 DingTalk blocks it for ten minutes."""
_log = get_logger(__name__)


@dataclass(slots=True)
class _Line:
    """One robot; `sent` monotonic seconds of its last calls, `taken` digest → when."""

    robot: Robot
    sent: deque[float] = field(default_factory=deque)
    taken: dict[str, float] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Delivery:
    """Close it with the application. Errors of the transport are logged by their kind alone: their texts hold the URL,
    and that holds the token."""

    def __init__(
        self,
        robots: Sequence[Robot],
        metrics: DeliveryMetrics,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._lines = [_Line(robot) for robot in robots]
        self._metrics = metrics
        self._sleep, self._clock, self._now_s = sleep, clock, now_s
        self._http = httpx.AsyncClient(timeout=CALL_TIMEOUT_S, follow_redirects=False, transport=transport)

    async def close(self) -> None:
        await self._http.aclose()

    async def deliver(self, message: Message, digest: str) -> None:
        """Raises DependencyError unless every robot has the message; the same `digest` again then reaches those that
        have not."""
        done = await asyncio.gather(*(self._bring(line, message, digest) for line in self._lines))
        missing = [line.robot.name for line, taken in zip(self._lines, done, strict=True) if not taken]
        if missing:
            raise DependencyError(f"not delivered to {', '.join(missing)}; post it again", retry_after_s=10.0)

    async def _bring(self, line: _Line, message: Message, digest: str) -> bool:
        name, begin = line.robot.name, self._clock()
        async with line.lock:
            self._forget(line)
            if digest in line.taken:
                outcome = "repeated"
            elif len(line.sent) + ATTEMPTS > line.robot.per_minute - _SPARE:
                outcome = "deferred"
                _log.warning("a robot has had its messages of this minute", robot=name, title=message.title)
            else:
                outcome = "delivered" if await self._tries(line, message) else "failed"
            self._metrics.messages.labels(name, outcome).inc()
            if outcome == "delivered":
                line.taken[digest] = self._clock()
                self._metrics.delivery.labels(name).observe(self._clock() - begin)
                _log.info("alert delivered", robot=name, title=message.title)
        return outcome in ("delivered", "repeated")

    async def _tries(self, line: _Line, message: Message) -> bool:
        content = orjson.dumps(line.robot.body(message))
        for attempt in range(ATTEMPTS):
            if attempt:
                await self._sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25))
            line.sent.append(self._clock())
            found, why = await self._call(line.robot, content)
            self._metrics.attempts.labels(line.robot.name, found.value).inc()
            if found is Verdict.TAKEN:
                return True
            _log.warning("a robot did not take an alert", robot=line.robot.name, title=message.title, why=why)
            if found is Verdict.REFUSED:
                return False
        return False

    async def _call(self, robot: Robot, content: bytes) -> tuple[Verdict, str]:
        try:
            answer = await self._http.post(
                robot.url,
                params=robot.parameters(self._now_s()),
                content=content,
                headers={"content-type": "application/json"},
            )
            said = orjson.loads(answer.content) if answer.status_code == httpx.codes.OK else None
        except httpx.TransportError as error:
            return Verdict.AGAIN, type(error).__name__
        except orjson.JSONDecodeError:
            return Verdict.REFUSED, "its answer is no JSON: is the address a robot's?"
        return verdict(answer.status_code, said)

    def _forget(self, line: _Line) -> None:
        now = self._clock()
        while line.sent and line.sent[0] <= now - 60.0:
            line.sent.popleft()
        for digest, when in list(line.taken.items()):  # oldest first, and no more than a robot takes in that time
            if when > now - REMEMBERED_S:
                break
            del line.taken[digest]
