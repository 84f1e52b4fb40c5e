"""Experiments: definitions, audit, exposures, and what their slates were like."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True)
_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _ascii(length: int) -> TypeEngine[str]:
    ascii_bin = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(ascii_bin, "mysql", "mariadb")


def _serial() -> TypeEngine[int]:
    return sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "experiments",
        sa.Column("experiment", _ascii(64), nullable=False),
        sa.Column("status", _ascii(16), nullable=False, comment="draft, running, stopped"),
        sa.Column(
            "document", _JSON, nullable=False, comment="definition, owner, hypothesis, metrics; carries a format"
        ),
        sa.Column(
            "revision", sa.BigInteger(), nullable=False, comment="value of counters.experiments when last changed"
        ),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger()),
        sa.Column("stopped_at_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("experiment", name="pk_experiments"),
        **_MYSQL,
    )
    op.create_index("ix_experiments_revision", "experiments", ["revision"])
    op.create_table(
        "experiment_audit",
        sa.Column("audit_seq", _serial(), autoincrement=True, nullable=False),
        sa.Column("experiment", _ascii(64), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", _ascii(64), nullable=False, comment="create, start, stop, ship, roll_back…"),
        sa.Column("detail", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("audit_seq", name="pk_experiment_audit"),
        **_MYSQL,
    )
    op.create_index("ix_experiment_audit_experiment_audit_seq", "experiment_audit", ["experiment", "audit_seq"])
    op.create_table(
        "exposures",
        sa.Column("experiment", _ascii(64), nullable=False),
        sa.Column("phase", sa.SmallInteger(), nullable=False),
        sa.Column("unit", _ascii(258), nullable=False, comment="user_key that met the variant"),
        sa.Column("variant", _ascii(64), nullable=False),
        sa.Column("first_at_us", sa.BigInteger(), nullable=False, comment="analysis of the unit starts here"),
        sa.Column("first_day", sa.Integer(), nullable=False),
        sa.Column(
            "segment", sa.String(64), nullable=False, comment="value of the experiment's segment_by at first exposure"
        ),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("experiment", "phase", "unit", "variant", name="pk_exposures"),
        **_MYSQL,
    )
    op.create_index("ix_exposures_experiment_phase_first_day", "exposures", ["experiment", "phase", "first_day"])
    op.create_index("ix_exposures_unit", "exposures", ["unit"])
    op.create_table(
        "experiment_slates",
        sa.Column("experiment", _ascii(64), nullable=False),
        sa.Column("recommendation_id", _ascii(64), nullable=False),
        sa.Column("phase", sa.SmallInteger(), nullable=False),
        sa.Column("variant", _ascii(64), nullable=False),
        sa.Column("unit", _ascii(258), nullable=False),
        sa.Column("served_at_us", sa.BigInteger(), nullable=False),
        sa.Column("served_day", sa.Integer(), nullable=False),
        sa.Column("took_us", sa.Integer(), nullable=False),
        sa.Column("items", sa.SmallInteger(), nullable=False, comment="0: an empty slate"),
        sa.Column("rung", _ascii(16), nullable=False, comment="of the degradation ladder"),
        sa.Column("degraded", sa.Boolean(), nullable=False),
        sa.Column("failed", sa.Boolean(), nullable=False, comment="the request ended in a 5xx; no exposure"),
        sa.Column(
            "ild", sa.Double(), comment="1 - mean cosine of the slate's item pairs; none below two items with vectors"
        ),
        sa.Column("novelty", sa.Double(), comment="mean -log2 of the items' share of recent interactions"),
        sa.PrimaryKeyConstraint("experiment", "recommendation_id", name="pk_experiment_slates"),
        **_MYSQL,
    )
    op.create_index(
        "ix_experiment_slates_experiment_phase_served_day", "experiment_slates", ["experiment", "phase", "served_day"]
    )
    op.create_index("ix_experiment_slates_unit", "experiment_slates", ["unit"])
    op.create_index("ix_experiment_slates_served_day", "experiment_slates", ["served_day"])


def downgrade() -> None:
    for table in ("experiment_slates", "exposures", "experiment_audit", "experiments"):
        op.drop_table(table)
