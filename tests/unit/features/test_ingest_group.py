"""The queue and the order of things, over a database that is a list and fails when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from services.features.ingest.group import EventIngest
from services.features.ingest.publisher import HistoryPublisher
from services.features.ingest.rows import EventRow, WriteResult
from services.features.metrics import IngestMetrics
from shared.actions import ActionTable
from shared.errors import DatabaseUnavailable, Overloaded, SilkrecError
from shared.observability.metrics import Metrics
from shared.schema import Schema
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database

ACTIONS = ActionTable.from_schema(Schema())


class ListDatabase:
    """`groups` are the event ids of each commit; the id `poison` fails its transaction, `away` all of them."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.away = False
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()

    async def run(self, _work: Any, _database: Any, rows: Sequence[EventRow], *_: Any) -> WriteResult:
        self.entered.set()
        await self.open.wait()
        if self.away:
            raise DatabaseUnavailable("away", retry_after_s=1.0)
        ids = [row.event_id for row in rows]
        if "poison" in ids:
            raise TypeError("one row is not what the driver takes")
        known = {event_id for group in self.groups for event_id in group}
        self.groups.append(ids)
        return WriteResult(tuple("duplicate" if event_id in known else "accepted" for event_id in ids))


class Published:
    def __init__(self) -> None:
        self.results: list[WriteResult] = []

    async def publish(self, result: WriteResult, _marked_us: int) -> bool:
        self.results.append(result)
        return True


def row(event_id: str) -> EventRow:
    return EventRow(event_id, "u:ann", "i1", 2, None, 1, 1)


Test = Callable[[EventIngest, ListDatabase, Published], Coroutine[Any, Any, None]]


def run(test: Test, **settings: Any) -> None:
    async def inside() -> None:
        database, published = ListDatabase(), Published()
        ingest = EventIngest(
            cast("Database", database),
            cast("HistoryPublisher", published),
            FeaturesSettings(**{"commit_delay_ms": 0, **settings}),
            ACTIONS,
            IngestMetrics(Metrics("test")),
        )
        writer = asyncio.create_task(ingest.run())
        try:
            async with asyncio.timeout(5):
                await test(ingest, database, published)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    asyncio.run(inside())


def test_requests_that_wait_together_share_one_commit_and_get_their_own_outcomes() -> None:
    async def test(ingest: EventIngest, database: ListDatabase, published: Published) -> None:
        database.open.clear()
        first = asyncio.create_task(ingest.submit([row("a")]))
        await database.entered.wait()
        others = [asyncio.create_task(ingest.submit([row(name), row("a")])) for name in "bc"]
        await asyncio.sleep(0)
        database.open.set()
        assert await first == ("accepted",)
        assert await asyncio.gather(*others) == [("accepted", "duplicate")] * 2
        assert database.groups == [["a"], ["b", "a", "c", "a"]]
        assert len(published.results) == 2

    run(test)


def test_a_group_keeps_to_its_size_in_whole_requests() -> None:
    async def test(ingest: EventIngest, database: ListDatabase, _published: Published) -> None:
        database.open.clear()
        waiting = [asyncio.create_task(ingest.submit([row(f"{n}x"), row(f"{n}y")])) for n in range(4)]
        await database.entered.wait()
        database.open.set()
        await asyncio.gather(*waiting)
        assert [len(group) for group in database.groups] == [2, 2, 2, 2]

    run(test, commit_max_events=3)


def test_one_request_that_cannot_be_written_fails_alone() -> None:
    async def test(ingest: EventIngest, database: ListDatabase, _published: Published) -> None:
        names = ["a", "b", "poison", "c", "d"]
        answers = await asyncio.gather(*(ingest.submit([row(name)]) for name in names), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert [type(one) for one in failed] == [SilkrecError]
        assert isinstance(answers[2], SilkrecError)
        assert sorted(event_id for group in database.groups for event_id in group) == ["a", "b", "c", "d"]

    run(test)


def test_beyond_the_queues_bound_a_request_is_refused_at_once() -> None:
    async def test(ingest: EventIngest, database: ListDatabase, _published: Published) -> None:
        database.open.clear()
        first = asyncio.create_task(ingest.submit([row("first")]))
        await database.entered.wait()
        full = asyncio.create_task(ingest.submit([row(str(n)) for n in range(500)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await ingest.submit([row("one more")])
        assert caught.value.retry_after_s
        database.open.set()
        assert len(await full) == 500
        assert await first == ("accepted",)
        assert await ingest.submit([row("later")]) == ("accepted",)

    run(test, queue_max_events=500)


def test_a_database_that_is_away_fails_those_that_wait_and_the_next_ones_are_tried() -> None:
    async def test(ingest: EventIngest, database: ListDatabase, published: Published) -> None:
        database.away = True
        answers = await asyncio.gather(*(ingest.submit([row(name)]) for name in "abc"), return_exceptions=True)
        assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 3
        assert published.results == []
        database.away = False
        assert await ingest.submit([row("a")]) == ("accepted",)

    run(test)


def test_nobody_is_left_waiting_when_the_writer_ends() -> None:
    async def test() -> None:
        database = ListDatabase()
        database.open.clear()
        ingest = EventIngest(
            cast("Database", database),
            cast("HistoryPublisher", Published()),
            FeaturesSettings(commit_delay_ms=0),
            ACTIONS,
            IngestMetrics(Metrics("test")),
        )
        writer = asyncio.create_task(ingest.run())
        waiting = [asyncio.create_task(ingest.submit([row(name)])) for name in "ab"]
        await database.entered.wait()
        writer.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 2

    asyncio.run(test())
