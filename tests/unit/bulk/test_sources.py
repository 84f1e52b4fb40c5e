"""Files as numbered rows."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.features.bulk.sources import open_source
from shared.errors import ValidationFailed


def rows_of(path: Path, *, batch_rows: int, after_row: int = 0, **options: Any) -> list[tuple[int, Any]]:
    source = open_source(path, **options)
    found: list[tuple[int, Any]] = []
    for chunk in source.read(["n"], batch_rows=batch_rows, after_row=after_row):
        cells = chunk.columns["n"]
        values = cells.to_pylist() if isinstance(cells, pa.Array) else cells
        found += [(row, int(value)) for row, value in zip(chunk.rows.tolist(), values, strict=True)]
        found += [(reject.row, None) for reject in chunk.malformed]
        assert max(row for row, _ in found) == chunk.last_row
    return sorted(found)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet", "jsonl"])
@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize("after_row", [0, 1, 29, 30, 99, 100])
def test_rows_keep_their_numbers_in_batches_of_any_size_and_from_any_row(
    tmp_path: Path, kind: str, batch_rows: int, after_row: int
) -> None:
    path = tmp_path / f"f.{kind}"
    separator = "\t" if kind == "tsv" else ","
    lines = [f"x{separator}n", *(f'"a {n}"{separator}{n}' for n in range(1, 101))]
    text = "\n\n".join(lines)  # empty lines are no rows
    if kind == "parquet":
        pq.write_table(pa.table({"x": ["a"] * 100, "n": list(range(1, 101))}), path, row_group_size=15)
    elif kind == "jsonl":
        path.write_text("\n\n".join(f'{{"n": {n}}}' for n in range(1, 101)))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    expected = [(n, n) for n in range(after_row + 1, 101)]
    assert rows_of(path, batch_rows=batch_rows, after_row=after_row) == expected


def test_malformed_rows_are_counted_and_named_in_their_place(tmp_path: Path) -> None:
    csv = tmp_path / "f.csv"
    csv.write_text('\ufeffx,n\na,1\nb\n"c\nd",3\ne,4,5\nf,5\n')
    assert rows_of(csv, batch_rows=2) == [(1, 1), (2, None), (3, 3), (4, None), (5, 5)]
    lines = tmp_path / "f.jsonl"
    lines.write_text('\ufeff{"n": 1}\n{"n": \n[3]\n{"n": 4}\n')
    assert rows_of(lines, batch_rows=3) == [(1, 1), (2, None), (3, None), (4, 4)]


def test_quotes_can_be_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "f.tsv"
    path.write_text('x\tn\n"Great" film\t1\n"open\t2\n')
    assert rows_of(path, batch_rows=9, quotes=False) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", b"", "is empty"),
        ("f.csv", b"1,2\n3,4\n", "its first line must name the columns"),
        ("f.csv", b"a,a\n3,4\n", "each once"),
        ("f.csv", b"\n1,2\n", "its first line must name the columns"),
        ("f.csv", b"a,n\n\xe9,4\n", "is not UTF-8; convert it: iconv"),
        ("f.csv.gz", b"a,n\n1,4\n", "is no whole gzip file"),
        ("f.foo", b"a,n\n", "add --format csv|parquet|jsonl"),
        ("f.parquet", b"PAR1", "is no Parquet file"),
        ("f.jsonl", b'[{"a": 1}]', "is one JSON array"),
        ("f.jsonl", b"a,b\n", "is a JSON object"),
        ("f.csv", b'a,n\n"never closed,1\n' + b"x,1\n" * 60_000, "is a quote never closed?"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValidationFailed) as caught:
        list(open_source(path).read(["n"], batch_rows=10))
    assert message in caught.value.detail
    assert str(path) in caught.value.detail
    assert "\n" not in caught.value.detail
