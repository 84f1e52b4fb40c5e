"""The journal's files: what survives kill -9, torn tails and damage; bounds; who may adopt a folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.recommender.journal import Journal, folders
from services.recommender.journal.record import decode, encode
from services.recommender.journal.segment import (
    MAX_PAYLOAD,
    Place,
    SegmentWriter,
    UnknownFormat,
    frame,
    mark_drained,
    read_one,
    read_records,
)
from services.recommender.metrics import JournalMetrics
from shared.observability.metrics import Metrics
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from tests.unit.recommender.slates import slate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'db' / 'empty.db'}", DatabaseSettings())
    yield database
    database.close()


def journal(state: Path, database: Database, *, max_slates: int = 1000) -> tuple[Journal, Metrics]:
    metrics = Metrics("test")
    return (
        Journal(state=state, process="test", database=database, metrics=JournalMetrics(metrics), max_slates=max_slates),
        metrics,
    )


def payloads(path: Path) -> list[bytes]:
    return [payload for _, payload in read_records(path)]


def written_ids(state: Path) -> list[str]:
    paths = sorted((state / "journal").glob("*/*.segment"))
    return [decode(payload).recommendation_id for path in paths for payload in payloads(path)]


def test_a_record_reads_back_as_it_was_written() -> None:
    before = slate(items=4)
    after = decode(encode(before))
    assert after.seed == before.seed
    assert after.degraded == before.degraded
    assert np.asarray(after.item_index).tolist() == [10, 11, 12, 13]
    assert np.allclose(np.asarray(after.score), np.asarray(before.score))


def test_an_empty_slate_is_a_record_too() -> None:
    after = decode(encode(slate(items=0)))
    assert after.item_index == []


def test_a_record_of_another_format_is_told_from_damage() -> None:
    with pytest.raises(UnknownFormat, match="999"):
        decode(b'[999,"whatever"]')


@pytest.mark.parametrize("damaged", [b"{}", b"[]", b"[1,2]", b"nonsense"])
def test_what_is_no_record_is_said_to_be_none(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(damaged)


def test_every_answer_that_left_before_kill_9_is_in_the_journal(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.unit.recommender.journal_writer", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        answered = [process.stdout.readline().strip() for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        answered += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert answered[0] == "rec-0"
    assert set(answered) <= set(written_ids(tmp_path))
    adopted = folders.adopt(tmp_path / "journal")
    assert adopted is not None, "the lock of a killed process must be free"
    adopted.release(remove=False)


def test_reading_stops_before_a_torn_tail_and_keeps_all_before_it(tmp_path: Path) -> None:
    path = tmp_path / "1.segment"
    writer = SegmentWriter(path)
    writer.append(frame(b"first") + frame(b"second"))
    whole = writer.size
    writer.append(frame(b"third, which the power cut"))
    writer.close()
    for size in range(path.stat().st_size - 1, whole - 1, -1):
        os.truncate(path, size)
        assert payloads(path) == [b"first", b"second"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_header_cut_anywhere_yields_no_record_and_no_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "1.segment"
    SegmentWriter(path).close()
    os.truncate(path, cut)
    assert payloads(path) == []


@pytest.mark.parametrize("header", [b"SRJRNL02" + bytes(8), b"SRJ2", bytes(64), b"SRJRNL0\xb1" + bytes(8)])
def test_a_header_of_another_release_or_of_none_is_no_empty_segment(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "1.segment"
    path.write_bytes(header)
    with pytest.raises(UnknownFormat, match="header"):
        payloads(path)


def test_a_folder_that_holds_anything_is_not_removed(tmp_path: Path) -> None:
    held = folders.create(tmp_path, "test")
    (held.path / "1.segment-of-another-kind").write_bytes(b"of a newer release")
    assert not held.release(remove=True)
    again = folders.adopt(tmp_path)
    assert again is not None
    assert again.path == held.path
    (held.path / "1.segment-of-another-kind").unlink()
    assert again.release(remove=True)
    assert not held.path.exists()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "1.segment"
    writer = SegmentWriter(path)
    writer.append(frame(b"first"))
    begin = writer.append(frame(b"second"))
    writer.close()
    content = bytearray(path.read_bytes())
    content[begin + 10] ^= 1
    path.write_bytes(content)
    assert payloads(path) == [b"first"]


def test_a_length_that_cannot_be_is_damage_and_not_an_allocation(tmp_path: Path) -> None:
    path = tmp_path / "1.segment"
    writer = SegmentWriter(path)
    writer.append((MAX_PAYLOAD + 1).to_bytes(4, "little") + b"\0\0\0\0" + b"x")
    writer.close()
    assert payloads(path) == []
    with pytest.raises(ValueError, match="over the"):
        frame(b"x" * (MAX_PAYLOAD + 1))


def test_reading_goes_on_after_what_was_drained(tmp_path: Path) -> None:
    path = tmp_path / "1.segment"
    writer = SegmentWriter(path)
    writer.append(frame(b"first") + frame(b"second"))
    (first, _), (second, _) = read_records(path)
    mark_drained(path, first.end)
    assert payloads(path) == [b"second"]
    writer.append(frame(b"third"))
    assert payloads(path) == [b"second", b"third"]
    assert read_one(first) == b"first"
    assert read_one(second) == b"second"
    writer.close()


def test_a_drained_offset_outside_the_file_means_all_of_it_again(tmp_path: Path) -> None:
    path = tmp_path / "1.segment"
    writer = SegmentWriter(path)
    writer.append(frame(b"first"))
    mark_drained(path, 1 << 40)
    assert payloads(path) == [b"first"]
    writer.close()


def test_a_place_in_a_segment_that_is_gone_reads_as_nothing(tmp_path: Path) -> None:
    assert read_one(Place(tmp_path / "gone.segment", 16, 40)) is None


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    held = folders.create(tmp_path, "test")
    assert folders.adopt(tmp_path) is None
    held.release(remove=False)
    again = folders.adopt(tmp_path)
    assert again is not None
    assert again.path == held.path
    again.release(remove=True)
    assert folders.adopt(tmp_path) is None


def test_a_slate_can_be_found_before_the_database_has_it(tmp_path: Path, database: Database) -> None:
    async def scenario() -> None:
        ours, _ = journal(tmp_path, database)
        assert await ours.append(slate("rec-7"), timeout_s=10)
        found = await ours.find("rec-7")
        assert found is not None
        assert found.user_key == "u:ann"
        assert ours.waiting == 1
        await ours.close(drain_s=0.0)

    asyncio.run(scenario())


def test_slates_beyond_the_bound_are_counted_as_lost_and_not_written(tmp_path: Path, database: Database) -> None:
    async def scenario() -> bytes:
        ours, metrics = journal(tmp_path, database, max_slates=2)
        assert [await ours.append(slate(f"rec-{n}"), timeout_s=10) for n in range(4)] == [True, True, False, False]
        await ours.close(drain_s=0.0)
        return metrics.render()

    rendered = asyncio.run(scenario())
    assert b'silkrec_test_journal_slates_lost_total{cause="full"} 2.0' in rendered
    assert written_ids(tmp_path) == ["rec-0", "rec-1"]


def test_a_slate_that_is_no_json_is_counted_and_stops_nobody(tmp_path: Path, database: Database) -> None:
    async def scenario() -> bytes:
        ours, metrics = journal(tmp_path, database)
        assert not await ours.append(slate("bad", request={"body": object()}), timeout_s=10)
        assert await ours.append(slate("good"), timeout_s=10)
        await ours.close(drain_s=0.0)
        return metrics.render()

    assert b'cause="unwritable"} 1.0' in asyncio.run(scenario())
    assert written_ids(tmp_path) == ["good"]


def test_concurrent_appends_are_all_written_once(tmp_path: Path, database: Database) -> None:
    async def scenario() -> None:
        ours, _ = journal(tmp_path, database)
        results = await asyncio.gather(*(ours.append(slate(f"rec-{n}"), timeout_s=30) for n in range(500)))
        assert all(results)
        await ours.close(drain_s=0.0)

    asyncio.run(scenario())
    assert sorted(written_ids(tmp_path)) == sorted(f"rec-{n}" for n in range(500))


def test_an_append_costs_a_request_less_than_the_budget(tmp_path: Path, database: Database) -> None:
    """Asked: below 0.3 ms; the bound here is ten times that, because test machines are shared."""

    async def scenario() -> float:
        ours, _ = journal(tmp_path, database)
        took = []
        for number in range(300):
            started = time.perf_counter()
            await ours.append(slate(f"rec-{number}", items=10), timeout_s=30)
            took.append(time.perf_counter() - started)
        await ours.close(drain_s=0.0)
        return sorted(took)[len(took) // 2]

    assert asyncio.run(scenario()) < 0.003
