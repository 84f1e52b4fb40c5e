"""Slates of experiments that no journal holds, and samples of the latencies of those that were served."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True)
_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _ascii(length: int) -> TypeEngine[str]:
    ascii_bin = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(ascii_bin, "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "experiment_losses",
        sa.Column("experiment", _ascii(64), nullable=False),
        sa.Column("phase", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("variant", _ascii(64), nullable=False),
        sa.Column("slates", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("experiment", "phase", "variant", name="pk_experiment_losses"),
        **_MYSQL,
    )
    op.create_table(
        "experiment_latency_daily",
        sa.Column("experiment", _ascii(64), nullable=False),
        sa.Column("phase", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("day", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("variant", _ascii(64), nullable=False),
        sa.Column("sample", _JSON, nullable=False, comment="us: took; unit: a number a user"),
        sa.Column("lifts", _JSON, nullable=False, comment="of latency quantiles, on the newest day"),
        sa.PrimaryKeyConstraint("experiment", "phase", "day", "variant", name="pk_experiment_latency_daily"),
        **_MYSQL,
    )


def downgrade() -> None:
    for table in ("experiment_latency_daily", "experiment_losses"):
        op.drop_table(table)
