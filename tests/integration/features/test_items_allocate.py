from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from services.features.items.allocate import ensure_items
from services.features.items.content import ItemContent
from services.features.items.store import put_items
from services.features.reading.catalogue import read_changed_items
from shared.storage.database import Database
from shared.storage.tables import counters, items

pytestmark = pytest.mark.integration
NOW_US = 1_800_000_000_000_000


def ensure(database: Database, item_ids: list[str]) -> dict[str, int]:
    return database.transact(lambda connection: ensure_items(connection, item_ids, now_us=NOW_US))


def put(database: Database, item_ids: list[str], title: str) -> None:
    writes = [(item_id, ItemContent(title=title)) for item_id in item_ids]
    database.transact(lambda connection: put_items(connection, writes, NOW_US))


def catalogue(database: Database) -> int | None:
    with database.read() as connection:
        value: int | None = connection.scalar(select(counters.c.value))
        return value


def test_items_get_the_next_numbers_and_keep_them(database: Database) -> None:
    assert ensure(database, ["a", "b", "a"]) == {"a": 1, "b": 2}
    assert ensure(database, ["c", "b"]) == {"b": 2, "c": 3}
    assert ensure(database, []) == {}


def test_ids_that_differ_in_case_are_different_items(database: Database) -> None:
    assert ensure(database, ["a", "A"]) == {"a": 1, "A": 2}


def test_a_first_sight_is_announced_by_one_revision_and_a_second_by_none(database: Database) -> None:
    ensure(database, ["a", "b"])
    assert catalogue(database) == 1
    ensure(database, ["a", "b"])
    assert catalogue(database) == 1
    ensure(database, ["a", "c"])
    with database.read() as connection:
        rows = read_changed_items(connection, 1, 10)
    assert [(row.item_id, row.known, row.revision, row.created_at_us) for row in rows] == [("c", False, 2, NOW_US)]


def test_more_ids_than_fit_in_a_statement_are_allocated_in_order(database: Database) -> None:
    item_ids = [f"item-{number}" for number in range(2500)]
    assert ensure(database, item_ids) == {item_id: place for place, item_id in enumerate(item_ids, 1)}


def test_writers_that_race_for_the_same_items_agree_and_leave_no_gap(database: Database) -> None:
    writers, rounds = 4, 5
    barrier = threading.Barrier(writers)

    def work(writer: int) -> list[dict[str, int]]:
        answers = []
        for turn in range(rounds):
            barrier.wait(30)
            names = [f"shared-{turn}-{n}" for n in range(10)] + [f"own-{turn}-{writer}-{n}" for n in range(3)]
            answers.append(ensure(database, names))
        return answers

    with ThreadPoolExecutor(writers) as pool:
        answers = [answer for of_one in pool.map(work, range(writers)) for answer in of_one]
    merged: dict[str, int] = {}
    for answer in answers:
        assert all(merged.setdefault(item_id, item_index) == item_index for item_id, item_index in answer.items())
    count = rounds * (10 + 3 * writers)
    with database.read() as connection:
        assert connection.execute(select(func.count(), func.max(items.c.item_index)).select_from(items)).one() == (
            count,
            count,
        )


def test_a_reader_that_follows_the_revision_misses_no_item_while_writers_race(database: Database) -> None:
    """Revisions must become visible in their order: a late smaller one would never be asked for again."""
    written = threading.Event()

    def write(writer: int) -> None:
        for turn in range(15):
            names = [f"i{(writer * 13 + turn * 7 + n) % 150}" for n in range(20)]
            ensure(database, names)
            put(database, names[:10], f"{writer}-{turn}")

    def follow() -> dict[str, str | None]:
        titles: dict[str, str | None] = {}
        revision = 0
        while True:
            ended = written.is_set()
            with database.read() as connection:
                rows = read_changed_items(connection, revision, 50)
            titles.update((row.item_id, row.title) for row in rows)
            revision = rows[-1].revision if rows else revision
            if ended and not rows:
                return titles

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        writing = [pool.submit(write, writer) for writer in range(4)]
        for one in writing:
            one.exception()
        written.set()
        followed = following.result()
    assert [one.exception() for one in writing] == [None] * 4
    with database.read() as connection:
        stored = {row.item_id: row.title for row in connection.execute(select(items.c.item_id, items.c.title))}
    assert followed == stored
