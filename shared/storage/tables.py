"""Every table. Portable between MySQL/MariaDB and SQLite; the migrations create exactly this.

Times are BIGINT microseconds since 1970 UTC (`_us`), days are INT days since 1970 UTC, so that both databases compare
and index them alike. Ids are ASCII and compared byte for byte (ascii_bin), which also keeps MySQL's index keys short.
"""

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
    Text,
    UniqueConstraint,
)

from shared.storage.columns import ID, LONG_JSON, MYSQL, NAME, USER_KEY, ascii_text, metadata, serial
from shared.storage.job_tables import batch_slates, job_chunks, job_events, jobs

__all__ = [
    "api_keys",
    "batch_slates",
    "counters",
    "deletions",
    "deployments",
    "events",
    "experiment_audit",
    "experiment_daily",
    "experiment_excluded_units",
    "experiment_item_daily",
    "experiment_progress",
    "experiment_quality_daily",
    "experiment_slates",
    "experiment_unit_days",
    "experiments",
    "exposures",
    "feedback",
    "import_progress",
    "item_daily",
    "items",
    "job_chunks",
    "job_events",
    "jobs",
    "metadata",
    "models",
    "recommendation_items",
    "recommendations",
    "user_state",
    "users",
]

users = Table(
    "users",
    metadata,
    Column("user_key", USER_KEY, primary_key=True),
    Column("properties", LONG_JSON, nullable=False),
    Column("segments", LONG_JSON, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    **MYSQL,
)
"""Profiles that were PUT. A user known by events only has a row in `user_state` alone."""

user_state = Table(
    "user_state",
    metadata,
    Column("user_key", USER_KEY, primary_key=True),
    Column("revision", BigInteger, nullable=False, comment="counts committed changes to the user's history"),
    Column(
        "dirty_since_us", BigInteger, comment="set by the commit that changed the history; cleared once Redis holds it"
    ),
    Column("deleted_at_us", BigInteger, comment="late events are refused until the user is PUT again"),
    Column("merged_into", USER_KEY, comment="later events of this visitor belong to that user"),
    Index(None, "dirty_since_us"),
    Index(None, "deleted_at_us"),
    **MYSQL,
)

items = Table(
    "items",
    metadata,
    Column("item_index", Integer, primary_key=True, autoincrement=True, comment="never reused"),
    Column("item_id", ID, nullable=False, unique=True),
    Column("known", Boolean, nullable=False, comment="false: only seen in events, no content was PUT yet"),
    Column("item_type", String(64)),
    Column("title", String(1024)),
    Column("categories", LONG_JSON, nullable=False),
    Column("is_hidden", Boolean, nullable=False),
    Column("available_from_us", BigInteger),
    Column("available_until_us", BigInteger),
    Column("price", Double),
    Column("currency", ascii_text(3)),
    Column(
        "created_at_us",
        BigInteger,
        nullable=False,
        comment="the item's own age as its owner states it; first sight otherwise",
    ),
    Column("properties", LONG_JSON, nullable=False),
    Column("embeddings", LONG_JSON, nullable=False),
    Column("revision", BigInteger, nullable=False, comment="value of counters.catalogue when last changed"),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("deleted_at_us", BigInteger),
    Index(None, "revision"),
    **MYSQL,
)

counters = Table(
    "counters",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("value", BigInteger, nullable=False),
    **MYSQL,
)
"""`catalogue`: raised by one inside each transaction that changes items, so readers can ask for what changed since.
`experiments` and `deployments` likewise, which makes each the one lock of its writers."""

events = Table(
    "events",
    metadata,
    Column("event_seq", serial(), primary_key=True, autoincrement=True),
    Column("event_id", ID, nullable=False),
    Column("occurred_day", Integer, nullable=False, comment="days since 1970 UTC of occurred_at"),
    Column("user_key", USER_KEY, nullable=False),
    Column("item_index", Integer),
    Column("action", SmallInteger, nullable=False),
    Column("event_value", Double),
    Column("occurred_at_us", BigInteger, nullable=False),
    Column("received_at_us", BigInteger, nullable=False),
    Column("session_id", ID),
    Column("recommendation_id", ID),
    Column("position", Integer),
    Column("impression", LONG_JSON, comment="item ids that were seen"),
    Column("properties", LONG_JSON),
    UniqueConstraint("event_id", "occurred_day"),
    Index(None, "user_key", "occurred_at_us", "event_seq"),
    Index(None, "occurred_day"),
    **MYSQL,
)

feedback = Table(
    "feedback",
    metadata,
    Column("user_key", USER_KEY),
    Column("item_index", Integer),
    Column("feedback_type", NAME),
    Column("value", Double),
    Column("event_id", ID, nullable=False, comment="the event that stands for it in the history"),
    Column("updated_at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("user_key", "item_index", "feedback_type"),
    **MYSQL,
)

item_daily = Table(
    "item_daily",
    metadata,
    Column("occurred_day", Integer),
    Column("item_index", Integer),
    Column("action", SmallInteger),
    Column("events", BigInteger, nullable=False),
    PrimaryKeyConstraint("occurred_day", "item_index", "action"),
    **MYSQL,
)
"""Events a day, item and action; kept in the same transaction as the events, so that popularity needs no scan."""

recommendations = Table(
    "recommendations",
    metadata,
    Column("recommendation_id", NAME, primary_key=True),
    Column("user_key", USER_KEY, nullable=False),
    Column("scene", NAME, nullable=False),
    Column("served_at_us", BigInteger, nullable=False),
    Column("served_day", Integer, nullable=False),
    Column("release", NAME, nullable=False),
    Column("model_version", NAME),
    Column("index_version", NAME),
    Column("took_us", Integer, nullable=False),
    Column("degraded", LONG_JSON, nullable=False),
    Column("request", LONG_JSON, nullable=False),
    Column("seed", BigInteger),
    Index(None, "user_key", "served_at_us"),
    Index(None, "served_day"),
    **MYSQL,
)

recommendation_items = Table(
    "recommendation_items",
    metadata,
    Column("recommendation_id", NAME),
    Column("position", SmallInteger),
    Column("item_index", Integer, nullable=False),
    Column("score", Double, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("source_bits", Integer, nullable=False),
    Column("served_day", Integer, nullable=False),
    PrimaryKeyConstraint("recommendation_id", "position"),
    Index(None, "served_day"),
    **MYSQL,
)

models = Table(
    "models",
    metadata,
    Column("version", NAME, primary_key=True),
    Column("kind", ascii_text(8), nullable=False, comment="model or index"),
    Column("created_at_us", BigInteger, nullable=False),
    Column("manifest", LONG_JSON, nullable=False),
    **MYSQL,
)
"""Registry of the artifact folders: what exists, with the manifest as it was when published."""

deployments = Table(
    "deployments",
    metadata,
    Column("version", serial(), primary_key=True, autoincrement=True),
    Column("release", NAME, nullable=False),
    Column("model_version", NAME),
    Column("index_version", NAME),
    Column("settings", LONG_JSON, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("note", String(512), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    **MYSQL,
)
"""Append-only; the newest row is active. Rolling back appends the older content again."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", NAME, primary_key=True),
    Column("key_hash", ascii_text(64), nullable=False, unique=True),
    Column("role", ascii_text(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("revoked_at_us", BigInteger),
    **MYSQL,
)

deletions = Table(
    "deletions",
    metadata,
    Column("deletion_id", NAME, primary_key=True),
    Column("user_key", USER_KEY, nullable=False),
    Column("requested_at_us", BigInteger, nullable=False),
    Column("finished_at_us", BigInteger),
    Column("receipts", LONG_JSON, nullable=False, comment="a store: state, count, at"),
    **MYSQL,
)

import_progress = Table(
    "import_progress",
    metadata,
    Column("import_id", NAME, primary_key=True),
    Column("source", Text, nullable=False),
    Column("rows_done", BigInteger, nullable=False),
    Column("rows_rejected", BigInteger, nullable=False),
    Column("finished_at_us", BigInteger),
    Column("updated_at_us", BigInteger, nullable=False),
    **MYSQL,
)

experiments = Table(
    "experiments",
    metadata,
    Column("experiment", NAME, primary_key=True),
    Column("status", ascii_text(16), nullable=False, comment="draft, running, stopped"),
    Column("document", LONG_JSON, nullable=False, comment="definition, owner, hypothesis, metrics; carries a format"),
    Column("revision", BigInteger, nullable=False, comment="value of counters.experiments when last changed"),
    Column("created_at_us", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("started_at_us", BigInteger),
    Column("stopped_at_us", BigInteger),
    Index(None, "revision"),
    **MYSQL,
)

experiment_audit = Table(
    "experiment_audit",
    metadata,
    Column("audit_seq", serial(), primary_key=True, autoincrement=True),
    Column("experiment", NAME, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", NAME, nullable=False, comment="create, start, stop, ship, roll_back…"),
    Column("detail", LONG_JSON, nullable=False),
    Index(None, "experiment", "audit_seq"),
    **MYSQL,
)
"""Append-only: who did what to which experiment."""

exposures = Table(
    "exposures",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("unit", USER_KEY, comment="user_key that met the variant"),
    Column("variant", NAME),
    Column("first_at_us", BigInteger, nullable=False, comment="analysis of the unit starts here"),
    Column("first_day", Integer, nullable=False),
    Column("segment", String(64), nullable=False, comment="value of the experiment's segment_by at first exposure"),
    Column("simulated", Boolean, nullable=False),
    PrimaryKeyConstraint("experiment", "phase", "unit", "variant"),
    Index(None, "experiment", "phase", "first_day"),
    Index(None, "unit"),
    **MYSQL,
)
"""A unit met its variant: its slate was served. Two rows of one unit in a phase: a multi-variant unit, left out."""

experiment_slates = Table(
    "experiment_slates",
    metadata,
    Column("experiment", NAME),
    Column("recommendation_id", NAME),
    Column("phase", SmallInteger, nullable=False),
    Column("variant", NAME, nullable=False),
    Column("unit", USER_KEY, nullable=False),
    Column("served_at_us", BigInteger, nullable=False),
    Column("served_day", Integer, nullable=False),
    Column("took_us", Integer, comment="none: an imported log without latencies"),
    Column("items", SmallInteger, nullable=False, comment="0: an empty slate"),
    Column("rung", ascii_text(16), nullable=False, comment="of the degradation ladder"),
    Column("degraded", Boolean, nullable=False),
    Column("failed", Boolean, nullable=False, comment="the request ended in a 5xx; no exposure"),
    Column("ild", Double, comment="1 - mean cosine of the slate's item pairs; none below two items with vectors"),
    Column("novelty", Double, comment="mean -log2 of the items' share of recent interactions"),
    PrimaryKeyConstraint("experiment", "recommendation_id"),
    Index(None, "experiment", "phase", "served_day"),
    Index(None, "unit"),
    Index(None, "served_day"),
    **MYSQL,
)
"""What one experiment's analysis needs of a served slate, so that it never parses `recommendations.request`."""

experiment_losses = Table(
    "experiment_losses",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("variant", NAME),
    Column("slates", BigInteger, nullable=False),
    PrimaryKeyConstraint("experiment", "phase", "variant"),
    **MYSQL,
)
"""Slates that were served and that no journal could take: exposures are missing, and events of units count for less."""

experiment_excluded_units = Table(
    "experiment_excluded_units",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("unit", USER_KEY),
    PrimaryKeyConstraint("experiment", "phase", "unit"),
    **MYSQL,
)
"""Multi-variant units: what they did speaks for no variant."""

experiment_unit_days = Table(
    "experiment_unit_days",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("unit", USER_KEY),
    Column("day", Integer, autoincrement=False, comment="local days since 1970; -D: before a first exposure on D"),
    Column("action", SmallInteger, autoincrement=False, comment="code of the event; -1: slates served"),
    Column("age", SmallInteger, autoincrement=False, comment="whole times 24 hours since the first exposure"),
    Column("events", Integer, nullable=False),
    Column("value", Double, nullable=False, comment="sum of event_value"),
    Column("seen", Integer, nullable=False, comment="items seen, or served"),
    PrimaryKeyConstraint("experiment", "phase", "day", "unit", "action", "age"),
    **MYSQL,
)
"""What a unit did from its first exposure on, sparse. The day leads the key, so that a day is written, replaced and
purged in one place, however many days there are; sums a unit are taken over a range of units at a time."""

experiment_daily = Table(
    "experiment_daily",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("day", Integer, autoincrement=False),
    Column("metric", NAME),
    Column("variant", NAME),
    Column("segment", String(64)),
    Column("sums", LONG_JSON, nullable=False, comment="sufficient statistics as of the end of the day"),
    PrimaryKeyConstraint("experiment", "phase", "day", "metric", "variant", "segment"),
    **MYSQL,
)

experiment_quality_daily = Table(
    "experiment_quality_daily",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("day", Integer, autoincrement=False),
    Column("variant", NAME),
    Column("sums", LONG_JSON, nullable=False, comment="requests, failures, sums of ILD and novelty, latency histogram"),
    PrimaryKeyConstraint("experiment", "phase", "day", "variant"),
    **MYSQL,
)

experiment_latency_daily = Table(
    "experiment_latency_daily",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("day", Integer, autoincrement=False),
    Column("variant", NAME),
    Column("sample", LONG_JSON, nullable=False, comment="us: took; unit: a number a user"),
    Column("lifts", LONG_JSON, nullable=False, comment="of latency quantiles, on the newest day"),
    PrimaryKeyConstraint("experiment", "phase", "day", "variant"),
    **MYSQL,
)

experiment_item_daily = Table(
    "experiment_item_daily",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("day", Integer, autoincrement=False),
    Column("variant", NAME),
    Column("item_index", Integer, autoincrement=False),
    Column("slates", Integer, nullable=False, comment="of the day's sampled slates, those that hold the item"),
    PrimaryKeyConstraint("experiment", "phase", "day", "variant", "item_index"),
    **MYSQL,
)

experiment_progress = Table(
    "experiment_progress",
    metadata,
    Column("experiment", NAME),
    Column("phase", SmallInteger),
    Column("day", Integer, autoincrement=False),
    Column("as_of_us", BigInteger, nullable=False, comment="end of the day, or when it was built before its end"),
    Column("event_seq", BigInteger, nullable=False, comment="newest event that existed when the build began"),
    Column("built_at_us", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("has_sums", Boolean, nullable=False, comment="false: what units did is there, experiment_daily is not yet"),
    PrimaryKeyConstraint("experiment", "phase", "day"),
    **MYSQL,
)
"""Which days are aggregated; written in the same transaction as the day, whose one lock it is."""
