"""Where a job's users come from, a page at a time: the body itself, a segment of all known users, a file.

A page carries the cursor behind it: written with the chunks that the page became, it is where a planner goes on that
follows a killed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Row, select

from services.recommender.filters import Targeting, compile_segment
from services.recommender.jobs.spec import EVERYBODY, JobBody
from services.recommender.jobs.work import SlateAsk
from shared.errors import ValidationFailed
from shared.identity import is_id, user_key
from shared.schema import Schema
from shared.storage.database import Database
from shared.storage.tables import user_state, users

# With an expression a page takes 50 ms, of which its test 30; a million users 25 s, in the memory of a page.
PAGE_USERS = 2000
_EXCERPT = 120
Cursor = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """`refused`: rows of a file that name nobody, or no items where items are needed."""

    asks: Sequence[SlateAsk]
    cursor: Cursor
    refused: Sequence[str] = ()


class Users(Protocol):
    """`unique`: no user comes twice, so nobody needs to watch for it."""

    @property
    def unique(self) -> bool: ...

    def pages(self, after: Cursor | None) -> Iterator[Page]:
        """From behind `after`; from the start without. Raises ValidationFailed for a file that cannot be read."""
        ...


def users_of(body: JobBody, *, database: Database, schema: Schema, input_dir: Path | None, now_us: int) -> Users:
    """Raises ValidationFailed for a file that is not below `input_dir`."""
    params = body.params
    if params.file is not None:
        path = allowed_file(params.file, input_dir)
        lists = body.type == "rerank"
        return ParquetUsers(path, lists) if path.suffix in (".parquet", ".pq") else JsonLinesUsers(path, lists)
    if params.segment is not None:
        chosen = None if params.segment == EVERYBODY else compile_segment(params.segment, schema)
        return SegmentUsers(database, chosen, now_us)
    return InlineUsers(tuple(body.inline()))


def allowed_file(name: str, input_dir: Path | None) -> Path:
    """Nobody reads outside of the folder, whatever `..` or links say."""
    if input_dir is None:
        raise ValidationFailed("this installation reads no files: jobs.input_dir is not set")
    path = (input_dir / name).resolve()
    if not path.is_relative_to(input_dir.resolve()):
        raise ValidationFailed(f"file {name[:_EXCERPT]!a} is not below jobs.input_dir")
    if not path.is_file():
        raise ValidationFailed(f"there is no file {name[:_EXCERPT]!a} below jobs.input_dir")
    if path.suffix not in (".parquet", ".pq", ".jsonl", ".ndjson"):
        raise ValidationFailed(f"file {name[:_EXCERPT]!a}: *.parquet or *.jsonl is read")
    return path


@dataclass(frozen=True, slots=True)
class InlineUsers:
    asks: tuple[SlateAsk, ...]
    unique: bool = False

    def pages(self, after: Cursor | None) -> Iterator[Page]:
        for start in range(0 if after is None else int(after["row"]), len(self.asks), PAGE_USERS):
            taken = self.asks[start : start + PAGE_USERS]
            yield Page(taken, {"row": start + len(taken)})


@dataclass(frozen=True, slots=True)
class SegmentUsers:
    """Everybody with a history or a profile, in the order of user_key; the deleted and the merged are left out.
    `chosen` None: all of them."""

    database: Database
    chosen: Targeting | None
    now_us: int
    unique: bool = True

    def pages(self, after: Cursor | None) -> Iterator[Page]:
        last = "" if after is None else str(after["user_key"])
        while rows := self._read(last):
            last = rows[-1].user_key
            yield Page([SlateAsk(row.user_key) for row in rows if self._holds(row)], {"user_key": last})

    def _read(self, after: str) -> Sequence[Row[*tuple[Any, ...]]]:
        key = user_state.c.user_key
        query = (
            select(key, users.c.properties, users.c.segments)
            .select_from(user_state.outerjoin(users, users.c.user_key == key))
            .where(key > after, user_state.c.deleted_at_us.is_(None), user_state.c.merged_into.is_(None))
            .order_by(key)
            .limit(PAGE_USERS)
        )
        with self.database.read() as connection:
            return connection.execute(query).all()

    def _holds(self, row: Row[*tuple[Any, ...]]) -> bool:
        if self.chosen is None:
            return True
        profile = {**(row.properties or {}), "segments": tuple(row.segments or ())}
        return self.chosen.holds(profile, {}, self.now_us)


@dataclass(frozen=True, slots=True)
class JsonLinesUsers:
    """`{"user_id": …}` or `{"visitor_id": …}` a line, with `item_ids` where lists are ranked. The cursor is a place in
    the file, so that going on reads nothing twice."""

    path: Path
    lists: bool
    unique: bool = False

    def pages(self, after: Cursor | None) -> Iterator[Page]:
        with self.path.open("rb") as file:
            file.seek(0 if after is None else int(after["byte"]))
            while lines := list(islice(iter(file.readline, b""), PAGE_USERS)):
                yield _page((_object(line) for line in lines if not line.isspace()), self.lists, {"byte": file.tell()})


@dataclass(frozen=True, slots=True)
class ParquetUsers:
    """Columns user_id or visitor_id, and item_ids (a list of strings) where lists are ranked."""

    path: Path
    lists: bool
    unique: bool = False

    def pages(self, after: Cursor | None) -> Iterator[Page]:
        done, row = 0 if after is None else int(after["row"]), 0
        try:
            with pq.ParquetFile(self.path) as file:
                names = [name for name in ("user_id", "visitor_id", "item_ids") if name in file.schema_arrow.names]
                for batch in file.iter_batches(PAGE_USERS, columns=names):
                    skipped, row = max(0, done - row), row + batch.num_rows
                    if row > done:
                        yield _page(batch.slice(skipped).to_pylist(), self.lists, {"row": row})
        except (pa.ArrowException, OSError) as error:
            raise ValidationFailed(f"{self.path.name} is no whole Parquet file: {error}") from None


def _page(rows: Any, lists: bool, cursor: Cursor) -> Page:
    asks, refused = [], []
    for row in rows:
        ask = _ask(row, lists)
        if ask is None:
            refused.append(str(row)[:_EXCERPT])
        else:
            asks.append(ask)
    return Page(asks, cursor, refused)


def _ask(row: Any, lists: bool) -> SlateAsk | None:
    if not isinstance(row, dict):
        return None
    user_id, visitor_id, items = row.get("user_id"), row.get("visitor_id"), row.get("item_ids")
    named = user_id if user_id is not None else visitor_id
    if not isinstance(named, str) or not is_id(named):
        return None
    key = user_key(user_id, visitor_id)
    if not lists:
        return SlateAsk(key)
    if not isinstance(items, list) or not items or not all(isinstance(one, str) for one in items):
        return None
    return SlateAsk(key, tuple(items))


def _object(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return line[:_EXCERPT].decode("utf-8", "replace")
