"""Tells a URL of each change of a job's state: from the outbox, at least once, signed, with a budget of attempts.

X-Silkrec-Event: 17                                  the event's number: what comes twice has the same
X-Silkrec-Signature: t=1767225600,v1=<hex>           HMAC-SHA256 of "t.body" with jobs.webhook.secret
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import orjson
from sqlalchemy import Connection, select, update

from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.store.clock import Clock, database_clock
from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.settings.roots import WebhookSettings
from shared.storage.database import Database
from shared.storage.tables import job_events

POLL_S = 1.0
BATCH = 20
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 600.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    event_seq: int
    payload: Any
    attempts: int


def signature(secret: str, at_s: int, body: bytes) -> str:
    mac = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"


def wait_s(attempts: int) -> float:
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempts - 1))


def claim(connection: Connection, lease_s: float, clock: Clock = database_clock) -> list[Event]:
    """Events that are due, taken for `lease_s`: what a sender does not record by then is due again."""
    now_us = clock(connection)
    table = job_events.c
    due = select(table.event_seq, table.payload, table.attempts).where(
        table.outcome == "waiting", table.due_at_us <= now_us
    )
    taken = []
    for row in connection.execute(due.order_by(table.due_at_us, table.event_seq).limit(BATCH)).all():
        mine = (table.event_seq == row.event_seq, table.attempts == row.attempts, table.outcome == "waiting")
        values = {"attempts": row.attempts + 1, "due_at_us": now_us + round(lease_s * 1e6)}
        if connection.execute(update(job_events).where(*mine).values(**values)).rowcount == 1:
            taken.append(Event(row.event_seq, row.payload, row.attempts + 1))
    return taken


def record(connection: Connection, event: Event, failure: str | None, most: int, clock: Clock = database_clock) -> str:
    """The outcome: delivered, waiting (tried again later) or given_up."""
    outcome = "delivered" if failure is None else "given_up" if event.attempts >= most else "waiting"
    due_at_us = clock(connection) + round(wait_s(event.attempts) * 1e6)
    values = {"outcome": outcome, "reason": failure, "due_at_us": due_at_us}
    connection.execute(update(job_events).where(job_events.c.event_seq == event.event_seq).values(**values))
    return outcome


class Webhook:
    """Give `run` to a TaskOwner. Owns its HTTP client; `close` it behind the owner."""

    def __init__(
        self,
        database: Database,
        settings: WebhookSettings,
        metrics: JobMetrics,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._now = now
        self._sleep = sleep
        # No redirects: a signed body goes where the operator said, and nowhere else.
        self._http = httpx.AsyncClient(
            timeout=settings.timeout_s, follow_redirects=False, trust_env=False, transport=transport
        )

    async def run(self) -> None:
        while True:
            try:
                sent = await self.deliver()
            except DatabaseUnavailable:
                sent = 0
            if sent < BATCH:
                await self._sleep(POLL_S)

    async def deliver(self) -> int:
        """One batch, one after the other; how many were tried. Raises DatabaseUnavailable."""
        lease_s = (BATCH + 1) * self._settings.timeout_s
        events = await self._transact(lambda connection: claim(connection, lease_s))
        for event in events:
            failure = await self._send(event)
            told = partial(record, event=event, failure=failure, most=self._settings.attempts)
            outcome = await self._transact(told)
            self._metrics.webhooks.labels(outcome).inc()
            if outcome == "given_up":
                _log.error("a webhook event is given up", event_seq=event.event_seq, cause=failure)
        return len(events)

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, event: Event) -> str | None:
        """What went wrong, if anything."""
        body = orjson.dumps({**event.payload, "event_seq": event.event_seq})
        headers = {"content-type": "application/json", "x-silkrec-event": str(event.event_seq)}
        if self._settings.secret is not None:
            secret = self._settings.secret.get_secret_value()
            headers["x-silkrec-signature"] = signature(secret, int(self._now()), body)
        try:
            answer = await self._http.post(self._settings.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return type(error).__name__
        return None if answer.is_success else f"HTTP {answer.status_code}"

    async def _transact(self, work: Callable[[Connection], Any]) -> Any:
        return await self._database.run(self._database.transact, work)
