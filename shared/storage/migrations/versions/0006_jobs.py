"""Jobs: what is asked, its chunks, the slates that they make, and the outbox of the webhook."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.types import TypeEngine

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True)
_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _ascii(length: int) -> TypeEngine[str]:
    ascii_bin = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(ascii_bin, "mysql", "mariadb")


def _blob() -> TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _serial() -> TypeEngine[int]:
    return sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")


def upgrade() -> None:
    _jobs()
    _job_chunks()
    _batch_slates()
    _job_events()


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", _ascii(64), nullable=False),
        sa.Column("kind", _ascii(16), nullable=False, comment="rerank, slate, prefill, export"),
        sa.Column(
            "state", _ascii(16), nullable=False, comment="planning, running, publishing, succeeded, failed, cancelled"
        ),
        sa.Column("spec", _JSON, nullable=False, comment="as it was accepted; carries a format"),
        sa.Column("spec_digest", _ascii(64), nullable=False),
        sa.Column("idempotency_key", _ascii(256)),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("cursor", _JSON, comment="how far the planner came; written with the chunks that it made"),
        sa.Column("planned", sa.Boolean(), nullable=False, comment="every user has a chunk"),
        sa.Column("chunks", sa.Integer(), nullable=False, comment="the highest number of a chunk with users"),
        sa.Column("users_done", sa.BigInteger(), comment="final numbers; while it runs the chunks are counted"),
        sa.Column("users_failed", sa.BigInteger()),
        sa.Column("users_total", sa.BigInteger()),
        sa.Column("checksum", _ascii(64), comment="of what was made, whatever the order of the chunks"),
        sa.Column("output", _JSON),
        sa.Column("reason", sa.String(1024)),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger()),
        sa.Column("finished_at_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
        **_MYSQL,
    )
    op.create_index("ix_jobs_state_created_at_us", "jobs", ["state", "created_at_us"])
    op.create_index("ix_jobs_created_at_us", "jobs", ["created_at_us"])
    op.create_index("ix_jobs_finished_at_us", "jobs", ["finished_at_us"])


def _job_chunks() -> None:
    op.create_table(
        "job_chunks",
        sa.Column("job_id", _ascii(64), nullable=False),
        sa.Column("chunk", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", _ascii(8), nullable=False, comment="plan (chunk 0), work (1 and up), publish (chunk -1)"),
        sa.Column("state", _ascii(16), nullable=False, comment="waiting, leased, done, parked, cancelled"),
        sa.Column(
            "due_at_us",
            sa.BigInteger(),
            nullable=False,
            comment="waiting: not before; leased: until; of the database's clock",
        ),
        sa.Column(
            "token",
            sa.BigInteger(),
            nullable=False,
            comment="fencing token: raised by each lease, compared by each commit",
        ),
        sa.Column(
            "attempts",
            sa.SmallInteger(),
            nullable=False,
            comment="leases that ended in a fault of the chunk, or in no word",
        ),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.Column("asks", _blob(), comment="the users and their lists, packed; gone once done"),
        sa.Column("users_done", sa.Integer(), nullable=False),
        sa.Column("users_failed", sa.Integer(), nullable=False),
        sa.Column("failures", _JSON, comment="[[user_key, why]] of users that got no slate"),
        sa.Column("reason", sa.String(1024), comment="what the last attempt failed of"),
        sa.Column("checksum", _ascii(64)),
        sa.Column("output", _JSON, comment="file, rows, sha256, bytes of the staged Parquet part"),
        sa.Column("seconds", sa.Double()),
        sa.Column("worker", sa.String(128)),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "chunk", name="pk_job_chunks"),
        **_MYSQL,
    )
    op.create_index("ix_job_chunks_job_id_state_due_at_us", "job_chunks", ["job_id", "state", "due_at_us"])
    op.create_index("ix_job_chunks_kind_updated_at_us", "job_chunks", ["kind", "updated_at_us"])


def _batch_slates() -> None:
    op.create_table(
        "batch_slates",
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column("scene", _ascii(64), nullable=False),
        sa.Column("job_id", _ascii(64), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("release", _ascii(64), nullable=False),
        sa.Column("model_version", _ascii(64)),
        sa.Column("index_version", _ascii(64)),
        sa.Column("slate", _blob(), nullable=False, comment="as in Redis: components/stored.py"),
        sa.Column("made_at_us", sa.BigInteger(), nullable=False),
        sa.Column("made_day", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("user_key", "scene", "job_id", name="pk_batch_slates"),
        **_MYSQL,
    )
    op.create_index("ix_batch_slates_job_id_chunk", "batch_slates", ["job_id", "chunk"])
    op.create_index("ix_batch_slates_made_day", "batch_slates", ["made_day"])


def _job_events() -> None:
    op.create_table(
        "job_events",
        sa.Column("event_seq", _serial(), autoincrement=True, nullable=False),
        sa.Column("job_id", _ascii(64), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("state", _ascii(16), nullable=False),
        sa.Column("payload", _JSON, nullable=False),
        sa.Column("outcome", _ascii(16), nullable=False, comment="waiting, delivered, given_up"),
        sa.Column("due_at_us", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.String(512)),
        sa.PrimaryKeyConstraint("event_seq", name="pk_job_events"),
        **_MYSQL,
    )
    op.create_index("ix_job_events_outcome_due_at_us", "job_events", ["outcome", "due_at_us"])
    op.create_index("ix_job_events_at_us", "job_events", ["at_us"])


def downgrade() -> None:
    for table in ("job_events", "batch_slates", "job_chunks", "jobs"):
        op.drop_table(table)
