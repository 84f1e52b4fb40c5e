"""Aggregates of experiments: what units did by day, sufficient statistics, slate quality, progress."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True)
_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _ascii(length: int) -> TypeEngine[str]:
    ascii_bin = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(ascii_bin, "mysql", "mariadb")


def _name(column: str) -> sa.Column[Any]:
    return sa.Column(column, _ascii(64), nullable=False)


def _number(column: str, kind: TypeEngine[Any] | None = None, comment: str | None = None) -> sa.Column[Any]:
    return sa.Column(column, kind or sa.Integer(), nullable=False, autoincrement=False, comment=comment)


def _table(name: str, *columns: sa.Column[Any], key: tuple[str, ...]) -> None:
    head = (_name("experiment"), _number("phase", sa.SmallInteger()))
    primary = sa.PrimaryKeyConstraint("experiment", "phase", *key, name=f"pk_{name}")
    op.create_table(name, *head, *columns, primary, **_MYSQL)


def upgrade() -> None:
    _table("experiment_excluded_units", sa.Column("unit", _ascii(258), nullable=False), key=("unit",))
    _table(
        "experiment_unit_days",
        sa.Column("unit", _ascii(258), nullable=False),
        _number("day", comment="local days since 1970; -1: before the first exposure"),
        _number("action", sa.SmallInteger(), "code of the event; -1: slates served"),
        _number("age", sa.SmallInteger(), "whole times 24 hours since the first exposure"),
        _number("events"),
        sa.Column("value", sa.Double(), nullable=False, comment="sum of event_value"),
        _number("seen", comment="items seen, or served"),
        key=("unit", "day", "action", "age"),
    )
    op.create_index(
        "ix_experiment_unit_days_experiment_phase_day", "experiment_unit_days", ["experiment", "phase", "day"]
    )
    _table(
        "experiment_daily",
        _number("day"),
        _name("metric"),
        _name("variant"),
        sa.Column("segment", sa.String(64), nullable=False),
        sa.Column("sums", _JSON, nullable=False, comment="sufficient statistics as of the end of the day"),
        key=("day", "metric", "variant", "segment"),
    )
    comment = "requests, failures, sums of ILD and novelty, latency histogram"
    _table(
        "experiment_quality_daily",
        _number("day"),
        _name("variant"),
        sa.Column("sums", _JSON, nullable=False, comment=comment),
        key=("day", "variant"),
    )
    _table(
        "experiment_item_daily",
        _number("day"),
        _name("variant"),
        _number("item_index"),
        _number("slates", comment="of the day's sampled slates, those that hold the item"),
        key=("day", "variant", "item_index"),
    )
    _table(
        "experiment_progress",
        _number("day"),
        _number("as_of_us", sa.BigInteger(), "end of the day, or when it was built before its end"),
        _number("event_seq", sa.BigInteger(), "newest event that existed when the build began"),
        _number("built_at_us", sa.BigInteger()),
        sa.Column("seconds", sa.Double(), nullable=False),
        key=("day",),
    )


def downgrade() -> None:
    for kind in ("progress", "item_daily", "quality_daily", "daily", "unit_days", "excluded_units"):
        op.drop_table(f"experiment_{kind}")
