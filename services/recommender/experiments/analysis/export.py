"""Sufficient statistics as Parquet: one row a day, metric, variant and segment, one column a sum, so that a warehouse
or DuckDB can take over. A null sum belongs to another kind of metric."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from services.recommender.experiments.registered import RegisteredExperiment
from shared.storage.database import Database
from shared.storage.tables import experiment_daily

SUMS = ("n", "new", "simulated", "x", "y", "p", "q", "xx", "xy", "xp", "xq", "yy", "yp", "yq", "pp", "pq", "qq", "cap")
SCHEMA = pa.schema(
    [
        ("experiment", pa.string()),
        ("phase", pa.int16()),
        ("day", pa.date32()),
        ("metric", pa.string()),
        ("variant", pa.string()),
        ("segment", pa.string()),
        ("basis", pa.string()),
        *((name, pa.float64()) for name in SUMS),
    ]
)


def export(database: Database, registered: RegisteredExperiment, path: Path) -> int:
    """Rows written, of all phases. The file appears whole or not at all. Raises DatabaseUnavailable, OSError."""
    table = experiment_daily
    query = select(table).where(table.c.experiment == registered.definition.key).order_by(*table.primary_key)
    with database.read() as connection:
        rows = [
            {
                **{name: row[name] for name in ("experiment", "phase", "day", "metric", "variant", "segment")},
                "basis": row["sums"].get("basis"),
                **{name: row["sums"].get(name) for name in SUMS},
            }
            for row in connection.execute(query).mappings()
        ]
    columns = {field.name: [row[field.name] for row in rows] for field in SCHEMA}
    columns["day"] = pa.array(columns["day"], pa.int32()).cast(pa.date32())
    partial = path.with_name(path.name + ".partial")
    try:
        pq.write_table(pa.table(columns, schema=SCHEMA), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)
