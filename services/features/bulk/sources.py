"""CSV, Parquet and JSON Lines as a stream of numbered rows; never the whole file in memory.

Row 1 is the first one behind the header; empty lines are not counted. CSV is split by the standard library and not by
pyarrow: its streaming reader cannot say which row is malformed, and both are far faster than the database (1.4 million
rows/s). JSON Lines for the same reason by orjson. A malformed row is a `Reject`, a damaged file a ValidationFailed.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from services.features.bulk.rejects import Reject
from shared.errors import ValidationFailed

Format = Literal["csv", "parquet", "jsonl"]
SUFFIXES: Mapping[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".inter": "csv", ".item": "csv", ".user": "csv",
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
DELIMITERS = ",\t;|"
# Fields of JSON Lines that appear later are found by name, but cannot be suggested.
HEAD_ROWS = 1000
_EXCERPT = 200


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` [n] numbers of the rows in `columns`; `last_row`: the chunk tells all up to here, malformed ones too."""

    rows: npt.NDArray[np.int64]
    columns: Mapping[str, Any]
    malformed: Sequence[Reject]
    last_row: int


class Source(Protocol):
    """`empty_is_missing`: an empty cell stands for no value, as in CSV, which has no other way to say so."""

    @property
    def path(self) -> Path: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def empty_is_missing(self) -> bool: ...

    def read(self, names: Sequence[str], *, batch_rows: int, after_row: int = 0) -> Iterator[Chunk]:
        """Chunks of at most `batch_rows` from the row behind `after_row`; `names` are of `columns`."""
        ...


def open_source(path: Path, kind: Format | None = None, *, delimiter: str | None = None, quotes: bool = True) -> Source:
    """Raises ValidationFailed: no such file, unknown format, no usable header."""
    if not path.is_file():
        raise ValidationFailed(f"{path}: there is no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    chosen = kind or SUFFIXES.get(suffixes[-1] if suffixes else "")
    if chosen is None:
        known = " ".join(SUFFIXES)
        raise ValidationFailed(f"{path}: the name does not say its format ({known}); add --format csv|parquet|jsonl")
    if path.stat().st_size == 0:
        raise ValidationFailed(f"{path} is empty")
    if chosen == "parquet":
        return ParquetSource.open(path)
    with _readable(path):
        return JsonLinesSource.open(path) if chosen == "jsonl" else CsvSource.open(path, delimiter, quotes)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the standard library says of a file that is not what its name promises."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValidationFailed(f"{path} is not UTF-8; convert it: iconv -f latin1 -t utf-8 {path}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ValidationFailed(f"{path} is no whole gzip file; fetch it again") from None
    except OSError as error:
        raise ValidationFailed(f"{path} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class CsvSource:
    path: Path
    columns: tuple[str, ...]
    delimiter: str
    quotes: bool
    empty_is_missing: bool = True

    @classmethod
    def open(cls, path: Path, delimiter: str | None, quotes: bool) -> CsvSource:
        with _text_of(path) as file:
            head = file.readline()
        if delimiter is not None and len(delimiter) != 1:
            raise ValidationFailed(f"--delimiter {delimiter!r}: give one character")
        found = delimiter or max(DELIMITERS, key=head.count)
        columns = [name.strip() for name in next(csv.reader([head], **_dialect(found, quotes)), [])]
        if (
            not columns
            or any(not name for name in columns)
            or len(set(columns)) < len(columns)
            or any(map(_is_number, columns))
        ):
            line = head.strip()[:_EXCERPT]
            raise ValidationFailed(
                f"{path}: its first line must name the columns, each once; it is {line!a}. Put such a line on top"
            )
        return cls(path, tuple(columns), found, quotes)

    def read(self, names: Sequence[str], *, batch_rows: int, after_row: int = 0) -> Iterator[Chunk]:
        places = [self.columns.index(name) for name in names]
        width, row = len(self.columns), 0
        with _text_of(self.path) as file:
            reader = csv.reader(file, **_dialect(self.delimiter, self.quotes))
            try:
                next(reader)
                while True:
                    with _readable(self.path):
                        taken = list(islice(reader, batch_rows))
                    if not taken:
                        return
                    cells = [line for line in taken if line]
                    first, row = row + 1, row + len(cells)
                    if row > after_row:
                        skipped = max(0, after_row - first + 1)
                        yield _csv_chunk(cells[skipped:], first + skipped, width, dict(zip(names, places, strict=True)))
            except csv.Error as error:
                raise ValidationFailed(
                    f"{self.path}: line {reader.line_num}: {error}; is a quote never closed? "
                    "--no-quotes takes quotes as they are"
                ) from None


def _csv_chunk(cells: list[list[str]], first: int, width: int, places: Mapping[str, int]) -> Chunk:
    last = first + len(cells) - 1
    rows = np.arange(first, last + 1, dtype=np.int64)
    fits = np.fromiter((len(line) == width for line in cells), bool, len(cells))
    malformed: list[Reject] = []
    if not fits.all():
        for place in np.flatnonzero(~fits):
            line = cells[place]
            message = f"has {len(line)} cells where the header has {width}"
            malformed.append(Reject(first + int(place), "malformed", message, {"cells": line[:width]}))
        cells = [line for line, fit in zip(cells, fits, strict=True) if fit]
        rows = rows[fits]
    columns = {name: [line[place] for line in cells] for name, place in places.items()}
    return Chunk(rows, columns, malformed, last)


@dataclass(frozen=True)
class ParquetSource:
    path: Path
    columns: tuple[str, ...]
    empty_is_missing: bool = False

    @classmethod
    def open(cls, path: Path) -> ParquetSource:
        with _parquet(path) as file:
            return cls(path, tuple(file.schema_arrow.names))

    def count(self) -> int:
        with _parquet(self.path) as file:
            return int(file.metadata.num_rows)

    def read(self, names: Sequence[str], *, batch_rows: int, after_row: int = 0) -> Iterator[Chunk]:
        with _parquet(self.path) as file:
            groups, row = _groups_after(file, after_row)
            try:
                for batch in file.iter_batches(batch_rows, row_groups=groups, columns=list(names)):
                    first, row = row + 1, row + batch.num_rows
                    if row <= after_row:
                        continue
                    batch = batch.slice(max(0, after_row - first + 1))
                    rows = np.arange(row - batch.num_rows + 1, row + 1, dtype=np.int64)
                    yield Chunk(rows, {name: batch.column(name) for name in names}, (), row)
            except (pa.ArrowException, OSError) as error:
                raise ValidationFailed(f"{self.path}: the Parquet file is damaged behind row {row}: {error}") from None


def _parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValidationFailed(f"{path} is no Parquet file: {error}") from None


def _groups_after(file: Any, after_row: int) -> tuple[list[int], int]:
    """The row groups that hold rows behind `after_row`, and how many rows stand before them."""
    before = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if before + size > after_row:
            return list(range(group, file.num_row_groups)), before
        before += size
    return [], before


@dataclass(frozen=True)
class JsonLinesSource:
    path: Path
    columns: tuple[str, ...]
    empty_is_missing: bool = field(default=False)

    @classmethod
    def open(cls, path: Path) -> JsonLinesSource:
        names: dict[str, None] = {}
        with _bytes_of(path) as file:
            if file.read(1) == b"[":
                raise ValidationFailed(f"{path} is one JSON array; make it an object a line: jq -c '.[]' {path}")
        with _bytes_of(path) as file:
            for line in islice(file, HEAD_ROWS):
                parsed = _object(line)
                names.update(dict.fromkeys(parsed or ()))
        if not names:
            raise ValidationFailed(f"{path}: none of its first {HEAD_ROWS} lines is a JSON object")
        return cls(path, tuple(names))

    def read(self, names: Sequence[str], *, batch_rows: int, after_row: int = 0) -> Iterator[Chunk]:
        row = 0
        with _bytes_of(self.path) as file:
            while True:
                with _readable(self.path):
                    taken = list(islice(file, batch_rows))
                if not taken:
                    return
                lines = [line for line in taken if not line.isspace()]
                first, row = row + 1, row + len(lines)
                if row > after_row:
                    skipped = max(0, after_row - first + 1)
                    yield _json_chunk(lines[skipped:], first + skipped, names)


def _json_chunk(lines: list[bytes], first: int, names: Sequence[str]) -> Chunk:
    rows, objects, malformed = [], [], []
    for row, line in enumerate(lines, first):
        parsed = _object(line)
        if parsed is None:
            excerpt = line[:_EXCERPT].decode("utf-8", "replace").rstrip()
            malformed.append(Reject(row, "malformed", "is no JSON object", {"line": excerpt}))
        else:
            rows.append(row)
            objects.append(parsed)
    columns = {name: [each.get(name) for each in objects] for name in names}
    return Chunk(np.asarray(rows, np.int64), columns, malformed, first + len(lines) - 1)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _dialect(delimiter: str, quotes: bool) -> dict[str, Any]:
    return {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE}


def _bytes_of(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _text_of(path: Path) -> io.TextIOWrapper:
    """A byte order mark is taken away."""
    return io.TextIOWrapper(_bytes_of(path), encoding="utf-8-sig", newline="")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
