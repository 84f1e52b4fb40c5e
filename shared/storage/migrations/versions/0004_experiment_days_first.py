"""What units did by day first, so that a day lies in one place; latencies that an imported log lacks; days without
statistics yet."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
contracts = "experiment_unit_days is made anew and took_us may be none; before any release"

_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_COLUMNS = "experiment, phase, unit, day, action, age, events, value, seen"


def _ascii(length: int) -> TypeEngine[str]:
    ascii_bin = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(ascii_bin, "mysql", "mariadb")


def _number(column: str, kind: TypeEngine[Any] | None = None, comment: str | None = None) -> sa.Column[Any]:
    return sa.Column(column, kind or sa.Integer(), nullable=False, autoincrement=False, comment=comment)


def _copied(*key: str, day: str) -> None:
    """Rows are kept: a stopped experiment is not built again. Measured on 600,000: 3 µs a row."""
    op.create_table(
        "experiment_unit_days_copy",
        sa.Column("experiment", _ascii(64), nullable=False),
        _number("phase", sa.SmallInteger()),
        sa.Column("unit", _ascii(258), nullable=False),
        _number("day", comment=day),
        _number("action", sa.SmallInteger(), "code of the event; -1: slates served"),
        _number("age", sa.SmallInteger(), "whole times 24 hours since the first exposure"),
        _number("events"),
        sa.Column("value", sa.Double(), nullable=False, comment="sum of event_value"),
        _number("seen", comment="items seen, or served"),
        sa.PrimaryKeyConstraint("experiment", "phase", *key, "action", "age", name="pk_experiment_unit_days"),
        **_MYSQL,
    )
    op.execute(
        f"INSERT INTO experiment_unit_days_copy ({_COLUMNS}) "  # noqa: S608
        f"SELECT {_COLUMNS} FROM experiment_unit_days ORDER BY experiment, phase, {', '.join(key)}"
    )
    op.drop_table("experiment_unit_days")
    op.rename_table("experiment_unit_days_copy", "experiment_unit_days")


def upgrade() -> None:
    _copied("day", "unit", day="local days since 1970; -D: before a first exposure on D")
    with op.batch_alter_table("experiment_slates") as table:
        comment = "none: an imported log without latencies"
        table.alter_column(
            "took_us", existing_type=sa.Integer(), existing_nullable=False, nullable=True, comment=comment
        )
    # Only imports had none; they wrote 0.
    op.execute("UPDATE experiment_slates SET took_us = NULL WHERE took_us = 0")
    with op.batch_alter_table("experiment_progress") as table:
        table.add_column(sa.Column("has_sums", sa.Boolean(), nullable=False, server_default=sa.true()))
    with op.batch_alter_table("experiment_progress") as table:
        comment = "false: what units did is there, experiment_daily is not yet"
        table.alter_column(
            "has_sums", existing_type=sa.Boolean(), existing_nullable=False, server_default=None, comment=comment
        )


def downgrade() -> None:
    with op.batch_alter_table("experiment_progress") as table:
        table.drop_column("has_sums")
    op.execute("UPDATE experiment_slates SET took_us = 0 WHERE took_us IS NULL")
    with op.batch_alter_table("experiment_slates") as table:
        table.alter_column("took_us", existing_type=sa.Integer(), existing_nullable=True, nullable=False, comment=None)
    _copied("unit", "day", day="local days since 1970; -1: before the first exposure")
    op.create_index(
        "ix_experiment_unit_days_experiment_phase_day", "experiment_unit_days", ["experiment", "phase", "day"]
    )
