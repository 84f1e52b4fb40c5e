"""Files into both databases: what is stored, what is left out, and what a killed or repeated import leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from services.features.bulk import job
from services.features.bulk.job import Summary, Wanted, run_import
from services.features.ingest.rows import EventRow
from services.features.ingest.writer import commit_events
from services.features.reading.history import load_history
from shared.actions import ActionTable
from shared.errors import Conflict, SilkrecError
from shared.schema import ItemField, Schema, UserField
from shared.settings.roots import Settings
from shared.storage.database import Database
from shared.storage.tables import events, import_progress, item_daily, items, user_state, users

pytestmark = pytest.mark.integration
ACTIONS = ActionTable.from_schema(Schema())
MAPPED = {"user_id": "uid", "item_id": "movie", "occurred_at": "ts", "event_value": "stars"}
RATING = {"event_type": "rating"}
DAY = 1_700_000_000


class Stopped(SilkrecError):
    """What a test raises where a process would be killed."""


def write_ratings(path: Path, rows: int, *, extra: str = "") -> Path:
    lines = [f"u{n % 7},m{n % 11},{n % 5 + 1},{DAY + n * 3600}" for n in range(rows)]
    path.write_text("uid,movie,stars,ts\n" + "\n".join(lines) + "\n" + extra)
    return path


def ratings(path: Path, **more: Any) -> Wanted:
    return Wanted(path, mapped=MAPPED, constants=RATING, **more)


def imported(database: Database, wanted: Wanted, settings: Settings | None = None, **more: Any) -> Summary:
    return run_import(database, settings or Settings(), wanted, **more)


def stored(database: Database, table: Any, *columns: str) -> list[tuple[Any, ...]]:
    chosen = [table.c[name] for name in columns] if columns else [table]
    with database.read() as connection:
        return sorted((tuple(row) for row in connection.execute(select(*chosen))), key=repr)


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def test_a_file_of_ratings_becomes_events_items_users_and_daily_counts(database: Database, tmp_path: Path) -> None:
    summary = imported(database, ratings(write_ratings(tmp_path / "r.csv", 100)))

    assert (summary.accepted, summary.duplicates, summary.rejected) == (100, 0, 0)
    assert count(database, events) == 100
    assert count(database, items) == 11
    with database.read() as connection:
        assert connection.scalar(select(func.sum(item_daily.c.events))) == 100
        states = connection.execute(select(user_state)).all()
        assert {row.user_key for row in states} == {f"u:u{n}" for n in range(7)}
        assert all(row.revision == 1 and row.dirty_since_us is not None for row in states)
        history = load_history(connection, "u:u0", max_events=2048, actions=ACTIONS)
    low, mid, high = (ACTIONS.by_name[name].code for name in ("rating_low", "rating_mid", "rating_high"))
    banded = [(low, low, mid, high, high)[n % 5] for n in range(0, 100, 7)]
    assert history.rows["action"].tolist() == banded


def test_the_api_and_the_import_leave_the_same_rows(database: Database, tmp_path: Path) -> None:
    """A deleted user, a merged visitor, a repeated event_id, an event without an item, and every optional field."""
    lines: list[dict[str, Any]] = [
        {
            "event_id": f"e{n % 54}", "event_type": ("click", "impression", "purchase")[n % 3],
            "occurred_at": f"2026-01-{n % 3 + 1:02d}T00:00:{n % 10:02d}Z", "position": n if n % 2 else None,
            "user_id": ("gone", "a", "b", None)[n % 4], "visitor_id": "merged" if n % 4 == 3 else None,
            "item_id": None if n % 10 == 9 else f"i{n % 8}", "session_id": "s" if n % 5 else None,
            "properties": {"device": "tv", "n": n} if n % 6 == 0 else None, "event_value": n / 4 if n % 2 else None,
            "impression": ["i1", "i2"] if n % 7 == 0 else None,
        }
        for n in range(60)
    ]  # fmt: skip
    path = tmp_path / "e.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    at_us = 1_800_000_000_000_000

    def prepare() -> None:
        with database.write() as connection:
            for table in (events, item_daily, items, user_state, import_progress):
                connection.execute(table.delete())
            plain = {"revision": 3, "deleted_at_us": None, "merged_into": None}
            rows = [
                {"user_key": "u:gone", **plain, "deleted_at_us": 5},
                {"user_key": "v:merged", **plain, "merged_into": "u:owner"},
                {"user_key": "u:owner", **plain},
            ]
            connection.execute(user_state.insert(), rows)

    def left() -> dict[str, list[tuple[Any, ...]]]:
        named = [column.name for column in events.c if column.name != "event_seq"]
        with database.read() as connection:
            found = connection.execute(select(*[events.c[name] for name in named]).order_by(events.c.event_seq))
            by_seq = [tuple(row) for row in found]
        states = ("user_key", "revision", "deleted_at_us", "merged_into", "dirty_since_us")
        return {
            "events": by_seq,
            "items": stored(database, items, "item_index", "item_id", "known", "created_at_us"),
            "daily": stored(database, item_daily),
            "users": stored(database, user_state, *states),
        }

    prepare()
    summary = imported(database, Wanted(path), clock_us=lambda: at_us)
    by_import = left()
    prepare()
    api_rows = [
        EventRow(
            event_id=line["event_id"],
            user_key=f"u:{line['user_id']}" if line["user_id"] else f"v:{line['visitor_id']}",
            item_id=line["item_id"],
            action=ACTIONS.by_name[line["event_type"]].code,
            event_value=line["event_value"],
            occurred_at_us=(1_767_225_600 + n % 3 * 86_400 + n % 10) * 1_000_000,
            received_at_us=at_us,
            session_id=line["session_id"],
            position=line["position"],
            impression=line["impression"],
            properties=line["properties"],
        )
        for n, line in enumerate(lines)
    ]
    result = commit_events(database, api_rows, ACTIONS, at_us)

    assert left() == by_import
    assert by_import["events"]
    assert summary.accepted == result.outcomes.count("accepted")
    assert summary.duplicates == result.outcomes.count("duplicate") == 6
    assert summary.rejected_by == {"user_deleted": result.outcomes.count("refused")}


def test_a_second_run_changes_nothing_moved_renamed_grown_or_forced(database: Database, tmp_path: Path) -> None:
    path = write_ratings(tmp_path / "r.csv", 50)
    imported(database, ratings(path))
    before = stored(database, events), stored(database, item_daily), stored(database, user_state)

    again = imported(database, ratings(path))
    forced = imported(database, ratings(path, restart=True))
    moved = imported(database, ratings(path.rename(tmp_path / "other.csv")))

    assert again.finished_before
    assert moved.finished_before
    assert (forced.accepted, forced.duplicates) == (0, 50)
    assert (stored(database, events), stored(database, item_daily), stored(database, user_state)) == before
    grown = imported(database, ratings(write_ratings(tmp_path / "other.csv", 60)))
    assert (grown.accepted, grown.duplicates) == (10, 50)


def test_every_format_makes_the_same_events(database: Database, tmp_path: Path) -> None:
    csv = write_ratings(tmp_path / "r.csv", 40)
    rows = [line.split(",") for line in csv.read_text().splitlines()[1:]]
    columns: dict[str, list[Any]] = {
        "uid": [row[0] for row in rows], "movie": [row[1] for row in rows],
        "stars": [float(row[2]) for row in rows], "ts": [int(row[3]) for row in rows],
    }  # fmt: skip
    stamps = pa.array([ts * 1000 for ts in columns["ts"]], pa.timestamp("ms", "UTC"))
    pq.write_table(
        pa.table({**columns, "uid": pa.array(columns["uid"]).dictionary_encode(), "ts": stamps}),
        tmp_path / "r.parquet", row_group_size=7,
    )  # fmt: skip
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "r.tsv").write_text(csv.read_text().replace(",", "\t"))
    iso = [{**line, "ts": f"1970-01-01T00:00:00.{n:06d}+00:00"} for n, line in enumerate(lines)]
    (tmp_path / "iso.jsonl").write_text("\n".join(json.dumps(line) for line in iso))

    assert imported(database, ratings(csv, batch_rows=9)).accepted == 40
    for name in ("r.parquet", "r.jsonl", "r.tsv"):
        summary = imported(database, ratings(tmp_path / name, batch_rows=11))
        assert (name, summary.accepted, summary.duplicates) == (name, 0, 40)
    assert imported(database, ratings(tmp_path / "iso.jsonl")).accepted == 40
    times = {row[0] for row in stored(database, events, "occurred_at_us")}
    assert set(range(40)) <= times


def test_ties_in_time_keep_the_order_of_the_file(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    order = [7, 3, 9, 1, 5, 2, 8]
    path.write_text("user_id,item_id,occurred_at\n" + "".join(f"u,i{n},2026-01-01T00:00:00Z\n" for n in order))
    imported(database, Wanted(path, constants={"event_type": "click"}, batch_rows=3))

    with database.read() as connection:
        history = load_history(connection, "u:u", max_events=2048, actions=ACTIONS)
        index = {row.item_id: row.item_index for row in connection.execute(select(items))}
    assert history.rows["item"].tolist() == [index[f"i{n}"] for n in order]


def test_what_does_not_fit_is_left_out_and_named_and_the_rest_is_stored(database: Database, tmp_path: Path) -> None:
    bad = {
        "u1,m1,3": "malformed", "u 1 ,m1,3,1700000000": "invalid", ",m1,3,1700000000": "missing",
        "u1,m/1,3,1700000000": "invalid", "u1,m1,,1700000000": "missing", "u1,m1,many,1700000000": "invalid",
        "u1,m1,3,": "missing", "u1,m1,3,yesterday": "invalid", "u1,m1,3,2030-01-01T00:00:00Z": "in_the_future",
        "u1,m1,3,-5": "invalid",
    }  # fmt: skip
    path = write_ratings(tmp_path / "r.csv", 5, extra="\n".join(bad) + "\nu9,m9,4,1700000000\n")
    rejects = tmp_path / "rejects.jsonl"

    summary = imported(database, ratings(path, rejects=rejects), clock_us=lambda: 1_750_000_000_000_000)

    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(line["row"], line["code"]) for line in lines] == list(enumerate(bad.values(), 6))
    assert lines[5]["message"] == "event_value 'many' is no number"
    assert lines[5]["values"] == {"uid": "u1", "movie": "m1", "ts": "1700000000", "stars": "many"}
    assert (summary.accepted, summary.rejected, summary.rows) == (6, 10, 16)
    assert count(database, events) == 6


def test_an_event_type_declared_after_the_first_run_is_taken_by_the_second(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("user_id,item_id,occurred_at,event_type\nu,i,2026-01-01,click\nu,i,2026-01-02,wish\n")
    first = imported(database, Wanted(path))
    assert (first.accepted, first.rejected_by) == (1, {"unknown_event_type": 1})

    wider = Schema.model_validate({"scenes": {"home": {"weights": {"click": 1}}}, "event_types": {
        "click": {"code": 2}, "wish": {"code": 20}}})  # fmt: skip
    second = imported(database, Wanted(path), Settings(data=wider))
    assert (second.accepted, second.duplicates, second.rejected) == (1, 1, 0)


def test_a_dry_run_writes_nothing_and_says_what_would_happen(database: Database, tmp_path: Path) -> None:
    imported(database, ratings(write_ratings(tmp_path / "a.csv", 30)))
    before = [stored(database, table) for table in (events, items, user_state, item_daily, import_progress)]
    path = write_ratings(tmp_path / "b.csv", 40, extra="new,fresh,2,1700000000\nu1,m1,none,1700000000\n")
    rejects = tmp_path / "rejects.jsonl"

    summary = imported(database, ratings(path, dry_run=True, rejects=rejects))

    assert (summary.accepted, summary.duplicates, summary.rejected) == (11, 30, 1)
    assert (summary.new_items, summary.new_users) == (1, 1)
    assert len(rejects.read_text().splitlines()) == 1
    assert [stored(database, table) for table in (events, items, user_state, item_daily, import_progress)] == before


def test_an_import_stopped_between_batches_goes_on_behind_the_last_one(database: Database, tmp_path: Path) -> None:
    path = write_ratings(tmp_path / "r.csv", 50, extra="u1,m1,none,1700000000\n")
    path.write_text(path.read_text().replace("u3,m3,4,", "u3,m3,bad,"))
    rejects = tmp_path / "rejects.jsonl"

    def stop(done: int, _total: int | None) -> None:
        if done == 30:
            raise Stopped("here")

    with pytest.raises(Stopped):
        imported(database, ratings(path, batch_rows=10, rejects=rejects), on_progress=stop)
    # As a process leaves it that dies between its rejects and their commit.
    with rejects.open("a") as file:
        file.write('{"row": 35, "code": "invalid", "message": "of a batch that was not committed", "values": {}}\n{"ro')

    rest = imported(database, ratings(path, batch_rows=10, rejects=rejects))
    assert (rest.resumed_after, rest.rows, rest.rejected_before) == (30, 21, 1)
    assert [json.loads(line)["row"] for line in rejects.read_text().splitlines()] == [4, 51]
    whole = stored(database, events, "event_id", "user_key", "occurred_at_us")
    assert len(whole) == 49
    imported(database, ratings(path, restart=True))
    assert stored(database, events, "event_id", "user_key", "occurred_at_us") == whole


def test_two_processes_that_import_one_file_do_not_both_write_it(database: Database, tmp_path: Path) -> None:
    path = write_ratings(tmp_path / "r.csv", 40)

    def interfere(done: int, _total: int | None) -> None:
        if done == 10:
            imported(database, ratings(path, batch_rows=10))

    with pytest.raises(Conflict, match="another process is importing the same file"):
        imported(database, ratings(path, batch_rows=10), on_progress=interfere)
    assert count(database, events) == 40
    with database.read() as connection:
        assert connection.scalar(select(func.sum(item_daily.c.events))) == 40


def test_an_import_killed_by_the_kernel_goes_on_and_ends_as_an_undisturbed_one(
    database: Database, tmp_path: Path
) -> None:
    path = write_ratings(tmp_path / "r.csv", 4000)
    config = tmp_path / "silkrec.yaml"
    config.touch()
    url = database.url.render_as_string(hide_password=False)
    environment = os.environ | {"SILKREC_CONFIG": str(config), "SILKREC_DATABASE__URL": url}
    command = [sys.executable, "-m", "services.cli.main", "data", "import", str(path), "--json", "--batch-rows", "5"]
    command += [
        "--map",
        ",".join(f"{name}={column}" for name, column in MAPPED.items()),
        "--const",
        "event_type=rating",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: count(database, events) > 100 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    process.communicate()
    partly = count(database, events)
    assert 100 < partly < 4000
    assert stored(database, import_progress, "rows_done", "finished_at_us") == [(partly, None)]

    done = subprocess.run([*command[:-6], *command[-4:]], env=environment, capture_output=True, text=True, check=True)

    summary = json.loads(done.stdout)
    assert (summary["resumed_after"], summary["accepted"]) == (partly, 4000 - partly)
    assert count(database, events) == 4000
    with database.read() as connection:
        assert connection.scalar(select(func.sum(item_daily.c.events))) == 4000


def until(condition: Callable[[], bool]) -> None:
    """Asks a real process's work, again and again; the test's own time-out ends it."""
    while not condition():
        continue


FIELDS: Mapping[str, Any] = {
    "item_fields": {
        "brand": ItemField(type="string"), "year": ItemField(type="number"), "tags": ItemField(type="strings"),
        "is_new": ItemField(type="boolean"), "seen_at": ItemField(type="timestamp"),
    },
    "user_fields": {"age": UserField(type="number"), "country": UserField(type="string")},
}  # fmt: skip


def test_items_come_with_their_fields_by_type(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "sku,name,cats,price,brand,year,tags,is_new,seen_at,junk\n"
        '1,"A, with comma",x|y,9.5,acme,1999,"a,b",yes,2026-01-01,?\n'
        "2,B,,,,,,,,\n"
        "3,C,x,cheap,,,,,,\n"
        "4,D,x,1,,old,,,,\n"
        "no/good,E,,,,,,,,\n"
    )
    wanted = Wanted(
        path, "items", {"item_id": "sku", "title": "name", "categories": "cats"}, splits={"tags": ","},
    )  # fmt: skip
    summary = imported(database, wanted, Settings(data=Schema(**FIELDS)))

    assert (summary.accepted, summary.rejected, list(summary.ignored)) == (2, 3, ["junk"])
    assert [reject.message.partition(":")[0] for reject in summary.examples] == ["price", "properties.year", "item_id"]
    with database.read() as connection:
        first, second = connection.execute(select(items).order_by(items.c.item_id)).all()
    assert (first.title, first.categories, first.price, first.known) == ("A, with comma", ["x", "y"], 9.5, True)
    assert first.properties == {
        "brand": "acme", "year": 1999, "tags": ["a", "b"], "is_new": True, "seen_at": "2026-01-01T00:00:00.000000Z",
    }  # fmt: skip
    assert (second.title, second.categories, second.price, second.properties) == ("B", [], None, {})
    again = imported(database, Wanted(**{**wanted.__dict__, "restart": True}), Settings(data=Schema(**FIELDS)))
    assert again.accepted == 2
    with database.read() as connection:
        assert connection.execute(select(items).order_by(items.c.item_id)).all() == [first, second]


def test_items_of_parquet_keep_their_lists_and_vectors(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    table = {"item_id": [1, 2], "categories": [["a"], ["b", "c"]], "vec": [[0.5, 1.0], [1.5, 2.0]]}
    pq.write_table(pa.table(table), path)
    summary = imported(database, Wanted(path, "items", {"embeddings.image": "vec"}))
    assert (summary.accepted, summary.rejected) == (2, 0)
    assert stored(database, items, "item_id", "categories", "embeddings") == [
        ("1", ["a"], {"image": [0.5, 1.0]}),
        ("2", ["b", "c"], {"image": [1.5, 2.0]}),
    ]


def test_users_come_with_properties_and_a_mark_for_the_sweeper(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("uid,age,country,segments\nann,41,FR,vip|new\nbob,young,FR,\nno/good,1,,\n")
    summary = imported(database, Wanted(path, "users", {"user_id": "uid"}), Settings(data=Schema(**FIELDS)))

    assert (summary.accepted, summary.rejected) == (1, 2)
    assert stored(database, users, "user_key", "properties", "segments") == [
        ("u:ann", {"age": 41, "country": "FR"}, ["vip", "new"])
    ]
    assert all(row[0] is not None for row in stored(database, user_state, "dirty_since_us"))


def test_a_batch_that_meets_the_same_event_of_another_writer_counts_it_as_known(
    database: Database, tmp_path: Path
) -> None:
    """The API writes an event of the file while the import is under way."""
    path = tmp_path / "e.csv"
    ids = [f"e{n}" for n in range(20)]
    path.write_text("event_id,user_id,item_id,occurred_at\n" + "".join(f"{e},u,i,2026-01-01\n" for e in ids))
    at_us = 1_767_225_600_000_000

    def meanwhile(done: int, _total: int | None) -> None:
        if done == 10:
            row = EventRow("e15", "u:u", "i", ACTIONS.by_name["click"].code, None, at_us, at_us)
            commit_events(database, [row], ACTIONS, at_us)

    wanted = Wanted(path, constants={"event_type": "click"}, batch_rows=10)
    summary = imported(database, wanted, on_progress=meanwhile)
    assert (summary.accepted, summary.duplicates) == (19, 1)
    assert count(database, events) == 20


def test_batches_of_any_size_leave_the_same_events(database: Database, tmp_path: Path) -> None:
    path = write_ratings(tmp_path / "r.csv", 33)
    seen = []
    for size in (1, 7, job.EVENTS_A_BATCH):
        with database.write() as connection:
            for table in (events, import_progress):
                connection.execute(table.delete())
        imported(database, ratings(path, batch_rows=size))
        seen.append(stored(database, events, "event_id", "user_key", "action", "event_value", "occurred_at_us"))
    assert seen[0] == seen[1] == seen[2]
