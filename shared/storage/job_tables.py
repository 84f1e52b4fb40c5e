"""Tables of jobs; `tables` has the rules of all tables and gives these on."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
)

from shared.storage.columns import ID, LONG_JSON, MYSQL, NAME, USER_KEY, ascii_text, long_blob, metadata, serial

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", NAME, primary_key=True),
    Column("kind", ascii_text(16), nullable=False, comment="rerank, slate, prefill, export"),
    Column(
        "state", ascii_text(16), nullable=False, comment="planning, running, publishing, succeeded, failed, cancelled"
    ),
    Column("spec", LONG_JSON, nullable=False, comment="as it was accepted; carries a format"),
    Column(
        "format",
        Integer,
        nullable=False,
        server_default="1",
        comment="of spec, cursor and packed asks: workers take what they can read; 1 where the release before wrote it",
    ),
    Column("spec_digest", ascii_text(64), nullable=False),
    Column("idempotency_key", ID, unique=True),
    Column("actor", String(128), nullable=False),
    Column("cursor", LONG_JSON, comment="how far the planner came; written with the chunks that it made"),
    Column("planned", Boolean, nullable=False, comment="every user has a chunk"),
    Column("chunks", Integer, nullable=False, comment="the highest number of a chunk with users"),
    Column("users_done", BigInteger, comment="final numbers; while it runs the chunks are counted"),
    Column("users_failed", BigInteger),
    Column("users_total", BigInteger),
    Column("checksum", ascii_text(64), comment="of what was made, whatever the order of the chunks"),
    Column("output", LONG_JSON),
    Column("reason", String(1024)),
    Column("created_at_us", BigInteger, nullable=False),
    Column("started_at_us", BigInteger),
    Column("finished_at_us", BigInteger),
    Column("request_id", ascii_text(128), comment="of the request that asked for it; none: a schedule did"),
    Column("traceparent", ascii_text(55), comment="its trace, which those of the chunks are linked to"),
    Index(None, "state", "created_at_us"),
    Index(None, "created_at_us"),
    Index(None, "finished_at_us"),
    **MYSQL,
)

job_chunks = Table(
    "job_chunks",
    metadata,
    Column("job_id", NAME),
    Column("chunk", Integer, autoincrement=False),
    Column("kind", ascii_text(8), nullable=False, comment="plan (chunk 0), work (1 and up), publish (chunk -1)"),
    Column("state", ascii_text(16), nullable=False, comment="waiting, leased, done, parked, cancelled"),
    Column(
        "due_at_us", BigInteger, nullable=False, comment="waiting: not before; leased: until; of the database's clock"
    ),
    Column("token", BigInteger, nullable=False, comment="fencing token: raised by each lease, compared by each commit"),
    Column(
        "attempts", SmallInteger, nullable=False, comment="leases that ended in a fault of the chunk, or in no word"
    ),
    Column("users", Integer, nullable=False),
    Column("asks", long_blob(), comment="the users and their lists, packed; gone once done"),
    Column("users_done", Integer, nullable=False),
    Column("users_failed", Integer, nullable=False),
    Column("failures", LONG_JSON, comment="[[user_key, why]] of users that got no slate"),
    Column("reason", String(1024), comment="what the last attempt failed of"),
    Column("checksum", ascii_text(64)),
    Column("output", LONG_JSON, comment="file, rows, sha256, bytes of the staged Parquet part"),
    Column("seconds", Double),
    Column("worker", String(128)),
    Column("updated_at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("job_id", "chunk"),
    Index(None, "job_id", "state", "due_at_us"),
    Index(None, "kind", "updated_at_us"),
    **MYSQL,
)
"""The truth about what is to be done and what is done. A message of the broker only wakes somebody who looks here."""

batch_slates = Table(
    "batch_slates",
    metadata,
    Column("user_key", USER_KEY),
    Column("scene", NAME),
    Column("job_id", NAME),
    Column("chunk", Integer, nullable=False),
    Column("release", NAME, nullable=False),
    Column("model_version", NAME),
    Column("index_version", NAME),
    Column("slate", long_blob(), nullable=False, comment="as in Redis: components/stored.py"),
    Column("made_at_us", BigInteger, nullable=False),
    Column("made_day", Integer, nullable=False),
    PrimaryKeyConstraint("user_key", "scene", "job_id"),
    Index(None, "job_id", "chunk"),
    Index(None, "made_day"),
    **MYSQL,
)

job_events = Table(
    "job_events",
    metadata,
    Column("event_seq", serial(), primary_key=True, autoincrement=True),
    Column("job_id", NAME, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("state", ascii_text(16), nullable=False),
    Column("payload", LONG_JSON, nullable=False),
    Column("outcome", ascii_text(16), nullable=False, comment="waiting, delivered, given_up"),
    Column("due_at_us", BigInteger, nullable=False),
    Column("attempts", SmallInteger, nullable=False),
    Column("reason", String(512)),
    Index(None, "outcome", "due_at_us"),
    Index(None, "at_us"),
    **MYSQL,
)
"""Outbox of the webhook: written in the transaction that changes a job's state, delivered behind it."""
