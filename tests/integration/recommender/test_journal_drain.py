"""The journal over a real database: each slate once, whatever dies in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from services.recommender.journal import Journal, folders
from services.recommender.journal.database import load_slate, put_slates
from services.recommender.journal.record import encode
from services.recommender.journal.segment import SUFFIX, frame
from services.recommender.metrics import JournalMetrics
from shared.observability.metrics import Metrics
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import recommendation_items, recommendations, user_state
from tests.unit.recommender.slates import SERVED_AT_US, slate

pytestmark = pytest.mark.integration
AWAY = "mysql+pymysql://nobody@127.0.0.1:1/none"


def journal(state: Path, database: Database, metrics: Metrics | None = None) -> Journal:
    return Journal(
        state=state,
        process="test",
        database=database,
        metrics=JournalMetrics(metrics or Metrics("test")),
        max_slates=10_000,
    )


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def segments(state: Path) -> list[Path]:
    return sorted((state / "journal").rglob(f"*{SUFFIX}"))


def test_slates_reach_the_database_as_they_were_served(database: Database, tmp_path: Path) -> None:
    async def scenario() -> None:
        ours = journal(tmp_path, database)
        for number in range(450):
            assert await ours.append(slate(f"rec-{number}", items=5), timeout_s=30)
        assert await ours.drain_waiting()
        assert ours.waiting == 0
        found = await ours.find("rec-449")
        assert found is not None
        assert found.degraded == [{"stage": "rank", "cause": "deadline", "fallback": "retrieval"}]
        assert found.request["sources"] == ["popular", "user"]
        assert found.item_index == [10, 11, 12, 13, 14]
        assert np.allclose(np.asarray(found.score), np.linspace(1, 0.5, 5))
        assert found.seed == 2**62 + 1
        assert await ours.find("never-served") is None
        await ours.close()

    asyncio.run(scenario())
    assert count(database, recommendations) == 450
    assert count(database, recommendation_items) == 2250
    assert segments(tmp_path) == [], "what the database holds needs no file"


def test_the_same_slate_put_twice_changes_nothing(database: Database) -> None:
    for _ in range(2):
        assert database.transact(lambda connection: put_slates(connection, [slate("rec-1"), slate("rec-2")])) == 0
    database.transact(lambda connection: put_slates(connection, [slate("rec-1", scene="other")]))
    assert count(database, recommendations) == 2
    assert count(database, recommendation_items) == 6
    with database.read() as connection:
        kept = load_slate(connection, "rec-1")
    assert kept is not None
    assert kept.scene == "home"


def test_of_two_attempts_at_one_request_the_first_stays_whole(database: Database) -> None:
    attempts = [slate("rec-1", items=2), slate("rec-1", items=5), slate("rec-2", items=1)]
    database.transact(lambda connection: put_slates(connection, attempts))
    database.transact(lambda connection: put_slates(connection, [slate("rec-2", items=4)]))
    assert count(database, recommendations) == 2
    with database.read() as connection:
        kept = [load_slate(connection, name) for name in ("rec-1", "rec-2")]
    assert [len(one.item_index) for one in kept if one is not None] == [2, 1]  # type: ignore[arg-type]


def test_what_a_dead_process_left_is_adopted_once(database: Database, tmp_path: Path) -> None:
    async def scenario() -> None:
        dead = journal(tmp_path, database)
        for number in range(5):
            await dead.append(slate(f"rec-{number}"), timeout_s=30)
        await asyncio.to_thread(dead._writer.close)
        dead._folder.release(remove=False)  # the kernel does this when a process is killed
        ours = journal(tmp_path, database)
        await ours.adopt_all()
        assert count(database, recommendations) == 5
        await ours.adopt_all()
        await ours.close()

    asyncio.run(scenario())
    assert segments(tmp_path) == []
    assert count(database, recommendations) == 5


def test_slates_served_while_the_database_is_away_wait_and_survive_a_restart(
    database: Database, tmp_path: Path
) -> None:
    async def without() -> None:
        away = Database(AWAY, DatabaseSettings(connect_timeout_s=0.2))
        ours = journal(tmp_path, away)
        for number in range(3):
            assert await ours.append(slate(f"rec-{number}"), timeout_s=30)
        await ours.close(drain_s=1.0)
        assert "waits for the database" in ours.status
        away.close()

    async def after() -> None:
        ours = journal(tmp_path, database)
        await ours.adopt_all()
        await ours.close()

    asyncio.run(without())
    assert len(segments(tmp_path)) == 1
    asyncio.run(after())
    assert count(database, recommendations) == 3
    assert segments(tmp_path) == []


def test_a_slate_that_the_database_refuses_holds_up_nobody(database: Database, tmp_path: Path) -> None:
    refused = slate("rec-bad", scene=None)
    metrics = Metrics("test")

    async def scenario() -> None:
        ours = journal(tmp_path, database, metrics)
        await ours.append(slate("rec-1"), timeout_s=30)
        await ours.append(refused, timeout_s=30)
        await ours.append(slate("rec-2"), timeout_s=30)
        assert await ours.drain_waiting()
        assert ours.waiting == 0
        await ours.close()

    asyncio.run(scenario())
    assert count(database, recommendations) == 2
    assert b'silkrec_test_journal_slates_skipped_total{cause="refused"} 1.0' in metrics.render()


def test_slates_of_a_user_who_was_deleted_since_do_not_come_back(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        connection.execute(user_state.insert().values(user_key="u:ann", revision=1))
        connection.execute(update(user_state).values(deleted_at_us=SERVED_AT_US + 1))

    async def scenario() -> None:
        ours = journal(tmp_path, database)
        await ours.append(slate("rec-1"), timeout_s=30)
        await ours.append(slate("rec-2", user_key="u:bob"), timeout_s=30)
        assert await ours.drain_waiting()
        assert ours.waiting == 0
        await ours.close()

    asyncio.run(scenario())
    with database.read() as connection:
        assert [row.user_key for row in connection.execute(select(recommendations.c.user_key))] == ["u:bob"]


async def left_by_a_dead_process(state: Path, database: Database, *names: str) -> Path:
    """The one segment of a folder whose lock is free."""
    dead = journal(state, database)
    for name in names:
        await dead.append(slate(name), timeout_s=30)
    await asyncio.to_thread(dead._writer.close)
    dead._folder.release(remove=False)
    (path,) = dead._folder.segments()
    return path


@pytest.mark.parametrize("header", [b"SRJRNL02", bytes(8)], ids=["newer", "zeros"])
def test_a_segment_of_an_unknown_header_is_kept_told_once_and_read_when_somebody_can(
    database: Database, tmp_path: Path, header: bytes
) -> None:
    metrics = Metrics("test")

    async def scenario() -> None:
        path = await left_by_a_dead_process(tmp_path, database, "rec-1", "rec-2")
        ours = path.read_bytes()
        newer = header + ours[8:]
        path.write_bytes(newer)
        behind = b"".join(frame(encode(slate(name))) for name in ("rec-3", "rec-4"))
        path.with_stem("0000000002").write_bytes(ours[:16] + behind)
        await left_by_a_dead_process(tmp_path, database, "rec-5")
        reader = journal(tmp_path, database, metrics)
        with capture_logs() as logged:
            await reader.adopt_all()
            await reader.adopt_all()
        assert path.read_bytes() == newer
        assert segments(tmp_path) == [path]
        assert recommended(database) == ["rec-3", "rec-4", "rec-5"]
        (told,) = [one for one in logged if one["log_level"] == "error"]
        assert (told["segment"], repr(header) in told["cause"]) == (str(path), True)
        assert b"silkrec_test_journal_segments_kept 1.0" in metrics.render()
        path.write_bytes(ours)  # as a release would find it that knows the header
        await reader.adopt_all()
        await reader.close()
        assert b"silkrec_test_journal_segments_kept 0.0" in metrics.render()

    asyncio.run(scenario())
    assert segments(tmp_path) == []
    assert list((tmp_path / "journal").iterdir()) == [], "emptied folders go as ever"
    assert recommended(database) == [f"rec-{number}" for number in range(1, 6)]


def test_records_of_an_unknown_format_are_kept_and_those_before_them_delivered(
    database: Database, tmp_path: Path
) -> None:
    async def scenario() -> None:
        path = await left_by_a_dead_process(tmp_path, database, "rec-1")
        older = path.read_bytes()
        newer = frame(b"[999]")
        path.write_bytes(older + newer + frame(encode(slate("rec-2"))))
        reader = journal(tmp_path, database)
        await reader.adopt_all()
        assert segments(tmp_path) == [path]
        assert recommended(database) == ["rec-1"]
        path.write_bytes(path.read_bytes().replace(newer, frame(encode(slate("rec-3")))))  # as the newer release has it
        await reader.adopt_all()
        await reader.close()

    asyncio.run(scenario())
    assert segments(tmp_path) == []
    assert recommended(database) == ["rec-1", "rec-2", "rec-3"]


def recommended(database: Database) -> list[str]:
    with database.read() as connection:
        return sorted(connection.scalars(select(recommendations.c.recommendation_id)))


def test_a_torn_tail_of_a_dead_process_loses_that_record_only(database: Database, tmp_path: Path) -> None:
    async def scenario() -> None:
        dead = journal(tmp_path, database)
        for number in range(3):
            await dead.append(slate(f"rec-{number}"), timeout_s=30)
        await asyncio.to_thread(dead._writer.close)
        (path,) = segments(tmp_path)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 7)
        dead._folder.release(remove=False)
        ours = journal(tmp_path, database)
        await ours.adopt_all()
        await ours.close()

    asyncio.run(scenario())
    assert count(database, recommendations) == 2
    assert segments(tmp_path) == []


def test_a_folder_of_a_living_process_is_not_drained_by_another(database: Database, tmp_path: Path) -> None:
    held = folders.create(tmp_path / "journal", "alive")

    async def scenario() -> None:
        ours = journal(tmp_path, database)
        await ours.adopt_all()
        await ours.close()

    asyncio.run(scenario())
    assert held.path.is_dir()
    held.release(remove=True)
