from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from services.recommender.jobs import webhook
from services.recommender.jobs.desk import JobDesk
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.webhook import Webhook
from shared.observability.metrics import Metrics
from shared.settings.roots import DatabaseSettings, JobsSettings, Settings, WebhookSettings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import job_events

SECRET = "a secret of the webhook"
BODY = {"type": "slate", "params": {"user_ids": ["ann"]}}


@dataclass
class Receiver:
    """Answers with `status`, or not at all."""

    status: int = 200
    away: bool = False
    got: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("away", request=request)
        self.got.append(request)
        return httpx.Response(self.status)


@dataclass
class Outbox:
    desk: JobDesk
    settings: WebhookSettings
    receiver: Receiver

    def deliver(self) -> int:
        async def once() -> int:
            sender = Webhook(
                self.desk.database,
                self.settings,
                JobMetrics(Metrics("jobs")),
                transport=httpx.MockTransport(self.receiver),
                now=lambda: 1_700_000_000.0,
            )
            try:
                return await sender.deliver()
            finally:
                await sender.close()

        return asyncio.run(once())

    def let_pass(self) -> None:
        with self.desk.database.write() as connection:
            connection.execute(job_events.update().values(due_at_us=0))

    def outcomes(self) -> list[str]:
        with self.desk.database.read() as connection:
            return list(connection.scalars(select(job_events.c.outcome).order_by(job_events.c.event_seq)))


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}", DatabaseSettings())
    migrate.upgrade(database)
    settings = WebhookSettings(url="https://shop.example/hook", secret=SecretStr(SECRET), attempts=2)
    yield Outbox(JobDesk(database, Settings(jobs=JobsSettings(webhook=settings))), settings, Receiver())
    database.close()


def test_each_change_of_state_is_told_once_and_signed(outbox: Outbox) -> None:
    seen, _ = outbox.desk.submit(read_body(BODY), actor="test")
    outbox.desk.cancel(seen.job.job_id)
    outbox.deliver()
    told = [orjson.loads(request.content) for request in outbox.receiver.got]
    assert [(one["job_id"], one["state"]) for one in told] == [
        (seen.job.job_id, "planning"),
        (seen.job.job_id, "cancelled"),
    ]
    request = outbox.receiver.got[0]
    expected = hmac.new(SECRET.encode(), b"1700000000." + request.content, hashlib.sha256).hexdigest()
    assert request.headers["x-silkrec-signature"] == f"t=1700000000,v1={expected}"
    assert request.headers["x-silkrec-event"] == str(told[0]["event_seq"])
    assert outbox.deliver() == 0
    assert outbox.outcomes() == ["delivered", "delivered"]


def test_a_receiver_that_fails_is_asked_again_later_and_given_up_after_its_budget(outbox: Outbox) -> None:
    outbox.desk.submit(read_body(BODY), actor="test")
    outbox.receiver.away = True
    assert outbox.deliver() == 1
    assert outbox.outcomes() == ["waiting"]
    assert outbox.deliver() == 0  # not before its time
    outbox.let_pass()
    outbox.receiver.away, outbox.receiver.status = False, 500
    assert outbox.deliver() == 1
    assert outbox.outcomes() == ["given_up"]


def test_a_sender_that_died_in_the_middle_leaves_the_event_to_the_next_one(outbox: Outbox) -> None:
    outbox.desk.submit(read_body(BODY), actor="test")
    taken = outbox.desk.database.transact(lambda connection: webhook.claim(connection, 60.0))
    assert len(taken) == 1
    assert outbox.deliver() == 0
    outbox.let_pass()
    assert outbox.deliver() == 1
    assert outbox.outcomes() == ["delivered"]


def test_waits_double_up_to_ten_minutes() -> None:
    assert [webhook.wait_s(attempt) for attempt in (1, 2, 3, 9, 20)] == [2.0, 4.0, 8.0, 512.0, 600.0]
