"""One import from its file to its summary: batch by batch, each a transaction that also says how far it came."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from services.features.bulk import progress
from services.features.bulk.batches import Batch, Done, Reading, make_reading
from services.features.bulk.identity import Fingerprint, fingerprint, import_id
from services.features.bulk.plan import Kind, make_plan
from services.features.bulk.preview import Preview
from services.features.bulk.progress import Progress
from services.features.bulk.rejects import Reject, RejectFile, open_rejects
from services.features.bulk.sources import Format, ParquetSource, Source, open_source
from services.features.bulk.values import TimeUnit
from shared.errors import Overloaded, ValidationFailed
from shared.identity import ID_RULE, is_id
from shared.schema import Schema
from shared.settings.roots import Settings
from shared.storage.database import Database

# Against 10,000 a third faster on SQLite (fewer users are locked twice); other writers wait for a batch, here 0.6 s.
EVENTS_A_BATCH = 20_000
RECORDS_A_BATCH = 500
ATTEMPTS = 5
SHOWN = 5
ID_PREFIX = "import-"
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Wanted:
    """What the caller asks for. `types`: the file's event type -> the declared one; `splits`: list field -> separator.
    `batch_rows` 0: the kind's own."""

    path: Path
    kind: Kind = "events"
    mapped: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    time_unit: TimeUnit = "auto"
    format: Format | None = None
    delimiter: str | None = None
    quotes: bool = True
    id_prefix: str = ID_PREFIX
    rejects: Path | None = None
    batch_rows: int = 0
    restart: bool = False
    dry_run: bool = False


@dataclass
class Summary:
    """`rows` of this run: `accepted` + `duplicates` + `rejected`. `resumed_after`: rows that earlier runs had done, and
    `rejected_before` of them. `finished_before`: there was nothing left to do. `examples`: the first rejects.
    `new_items`, `new_users`: of a dry run over a database that could be asked."""

    import_id: str
    source: str
    kind: Kind
    dry_run: bool
    columns: Mapping[str, str]
    ignored: Sequence[str]
    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejected_by: Counter[str] = field(default_factory=Counter)
    examples: list[Reject] = field(default_factory=list)
    resumed_after: int = 0
    rejected_before: int = 0
    finished_before: bool = False
    new_items: int | None = None
    new_users: int | None = None
    seconds: float = 0.0

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rejected_by": dict(self.rejected_by), "rows_per_s": round(self.rows_per_s)}

    def add(self, done: Done, rows: int) -> None:
        self.rows += rows
        self.accepted += done.accepted
        self.duplicates += done.duplicates
        self.rejected += len(done.rejects)
        self.rejected_by.update(reject.code for reject in done.rejects)
        self.examples += done.rejects[: SHOWN - len(self.examples)]


def run_import(
    database: Database | None, settings: Settings, wanted: Wanted, on_progress: OnProgress = lambda *_: None,
    *, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> Summary:  # fmt: skip
    """`database` None: a dry run that cannot ask it. Raises ValidationFailed, Conflict, DatabaseUnavailable: what was
    committed before stays, and the same call goes on behind it."""
    _check(wanted)
    source = open_source(wanted.path, wanted.format, delimiter=wanted.delimiter, quotes=wanted.quotes)
    plan = make_plan(wanted.kind, source.columns, wanted.mapped, wanted.constants, settings.data)
    reading = make_reading(source, plan, settings, wanted)
    content = fingerprint(wanted.path)
    identity = import_id(content, _meaning(wanted, reading, settings.data))
    summary = Summary(identity, str(wanted.path), wanted.kind, wanted.dry_run, plan.columns, plan.ignored)
    before = Progress() if wanted.dry_run or database is None else _begin(database, identity, wanted.restart)
    summary.resumed_after, summary.rejected_before = before.rows_done, before.rows_rejected
    if before.finished_at_us is not None:
        summary.finished_before = True
        return summary
    total = _total(source, content)
    began = time.perf_counter()
    with open_rejects(wanted.rejects, kept_rows=before.rows_done, source=wanted.path) as rejects:
        job = _Job(identity, rejects, summary, Preview(database), clock_us)
        size = wanted.batch_rows or (EVENTS_A_BATCH if wanted.kind == "events" else RECORDS_A_BATCH)
        for chunk in source.read(reading.names, batch_rows=size, after_row=before.rows_done):
            at_us = clock_us()
            batch = reading.batch(chunk, at_us)
            if wanted.dry_run or database is None:
                before = job.look(batch, before)
            else:
                before = job.commit(database, batch, before, at_us)
            summary.seconds = time.perf_counter() - began
            on_progress(before.rows_done, total)
        job.finish(None if wanted.dry_run else database, before)
    summary.seconds = time.perf_counter() - began
    return summary


class _Job:
    def __init__(
        self, identity: str, rejects: RejectFile, summary: Summary, preview: Preview, clock_us: Callable[[], int]
    ) -> None:
        self._identity = identity
        self._rejects = rejects
        self._summary = summary
        self._preview = preview
        self._clock_us = clock_us

    def commit(self, database: Database, batch: Batch, before: Progress, at_us: int) -> Progress:
        for _ in range(ATTEMPTS):
            try:
                done = database.transact(lambda connection: self._write(connection, batch, before, at_us))
                break
            except IntegrityError:
                continue  # the next look finds the event that another process wrote, and calls ours a duplicate
        else:
            raise Overloaded("the same rows are being written again and again by other processes; try later")
        return self._done(batch, before, done)

    def _write(self, connection: Connection, batch: Batch, before: Progress, at_us: int) -> Done:
        done = batch.write(connection)
        after = Progress(batch.last_row, before.rows_rejected + len(done.rejects))
        progress.advance(connection, self._identity, self._summary.source, before, after, at_us)
        self._rejects.stage(done.rejects)
        return done

    def look(self, batch: Batch, before: Progress) -> Progress:
        done = self._preview.of(batch)
        self._rejects.stage(done.rejects)
        return self._done(batch, before, done)

    def _done(self, batch: Batch, before: Progress, done: Done) -> Progress:
        self._rejects.keep()
        self._summary.add(done, batch.last_row - before.rows_done)
        return Progress(batch.last_row, before.rows_rejected + len(done.rejects))

    def finish(self, database: Database | None, before: Progress) -> None:
        if database is None:
            self._summary.new_items, self._summary.new_users = self._preview.new_items, self._preview.new_users
            return
        at_us = self._clock_us()
        after = Progress(before.rows_done, before.rows_rejected, at_us)
        source = self._summary.source
        database.transact(lambda connection: progress.advance(connection, self._identity, source, before, after, at_us))


def _begin(database: Database, identity: str, restart: bool) -> Progress:
    if restart:
        database.transact(lambda connection: progress.forget(connection, identity))
        return Progress()
    with database.read() as connection:
        return progress.find(connection, identity) or Progress()


def _meaning(wanted: Wanted, reading: Reading, schema: Schema) -> dict[str, Any]:
    """With the declarations: rows that were rejected for one that was missing are looked at again once it is there."""
    by_kind: dict[Kind, Mapping[str, Any]] = {
        "events": schema.event_types,
        "items": schema.item_fields,
        "users": schema.user_fields,
    }
    return {
        "kind": wanted.kind,
        "columns": dict(reading.plan.columns),
        "constants": dict(reading.plan.constants),
        "types": dict(wanted.types),
        "splits": dict(wanted.splits),
        "unit": wanted.time_unit,
        "csv": [wanted.delimiter, wanted.quotes],
        "id_prefix": wanted.id_prefix,
        "declared": {name: each.model_dump(mode="json") for name, each in by_kind[wanted.kind].items()},
    }


def _check(wanted: Wanted) -> None:
    if not is_id(f"{wanted.id_prefix}0") or len(wanted.id_prefix) > 64:
        raise ValidationFailed(f"--id-prefix {wanted.id_prefix!a}: at most 64 characters of an id, which is {ID_RULE}")
    if wanted.batch_rows < 0:
        raise ValidationFailed("--batch-rows must be above 0")


def _total(source: Source, content: Fingerprint) -> int | None:
    if isinstance(source, ParquetSource):
        return source.count()
    return None if source.path.suffix.lower() == ".gz" else content.lines
