"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
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
        "api_keys",
        sa.Column("key_id", _ascii(64), nullable=False),
        sa.Column("key_hash", _ascii(64), nullable=False),
        sa.Column("role", _ascii(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.UniqueConstraint("key_hash", name="uq_api_keys_key_hash"),
        **_MYSQL,
    )
    op.create_table(
        "counters",
        sa.Column("name", _ascii(64), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
        **_MYSQL,
    )
    op.create_table(
        "deletions",
        sa.Column("deletion_id", _ascii(64), nullable=False),
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column("requested_at_us", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_us", sa.BigInteger()),
        sa.Column("receipts", _JSON, nullable=False, comment="a store: state, count, at"),
        sa.PrimaryKeyConstraint("deletion_id", name="pk_deletions"),
        **_MYSQL,
    )
    op.create_table(
        "deployments",
        sa.Column("version", _serial(), autoincrement=True, nullable=False),
        sa.Column("release", _ascii(64), nullable=False),
        sa.Column("model_version", _ascii(64)),
        sa.Column("index_version", _ascii(64)),
        sa.Column("settings", _JSON, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("note", sa.String(512), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_deployments"),
        **_MYSQL,
    )
    op.create_table(
        "events",
        sa.Column("event_seq", _serial(), autoincrement=True, nullable=False),
        sa.Column("event_id", _ascii(256), nullable=False),
        sa.Column("occurred_day", sa.Integer(), nullable=False, comment="days since 1970 UTC of occurred_at"),
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column("item_index", sa.Integer()),
        sa.Column("action", sa.SmallInteger(), nullable=False),
        sa.Column("event_value", sa.Double()),
        sa.Column("occurred_at_us", sa.BigInteger(), nullable=False),
        sa.Column("received_at_us", sa.BigInteger(), nullable=False),
        sa.Column("session_id", _ascii(256)),
        sa.Column("recommendation_id", _ascii(256)),
        sa.Column("position", sa.Integer()),
        sa.Column("impression", _JSON, comment="item ids that were seen"),
        sa.Column("properties", _JSON),
        sa.PrimaryKeyConstraint("event_seq", name="pk_events"),
        sa.UniqueConstraint("event_id", "occurred_day", name="uq_events_event_id_occurred_day"),
        **_MYSQL,
    )
    op.create_index("ix_events_occurred_day", "events", ["occurred_day"])
    op.create_index(
        "ix_events_user_key_occurred_at_us_event_seq", "events", ["user_key", "occurred_at_us", "event_seq"]
    )

    op.create_table(
        "feedback",
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column("item_index", sa.Integer(), nullable=False),
        sa.Column("feedback_type", _ascii(64), nullable=False),
        sa.Column("value", sa.Double()),
        sa.Column("event_id", _ascii(256), nullable=False, comment="the event that stands for it in the history"),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_key", "item_index", "feedback_type", name="pk_feedback"),
        **_MYSQL,
    )
    op.create_table(
        "import_progress",
        sa.Column("import_id", _ascii(64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("rows_done", sa.BigInteger(), nullable=False),
        sa.Column("rows_rejected", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_us", sa.BigInteger()),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("import_id", name="pk_import_progress"),
        **_MYSQL,
    )
    op.create_table(
        "item_daily",
        sa.Column("occurred_day", sa.Integer(), nullable=False),
        sa.Column("item_index", sa.Integer(), nullable=False),
        sa.Column("action", sa.SmallInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("occurred_day", "item_index", "action", name="pk_item_daily"),
        **_MYSQL,
    )
    op.create_table(
        "items",
        sa.Column("item_index", sa.Integer(), autoincrement=True, nullable=False, comment="never reused"),
        sa.Column("item_id", _ascii(256), nullable=False),
        sa.Column("known", sa.Boolean(), nullable=False, comment="false: only seen in events, no content was PUT yet"),
        sa.Column("item_type", sa.String(64)),
        sa.Column("title", sa.String(1024)),
        sa.Column("categories", _JSON, nullable=False),
        sa.Column("is_hidden", sa.Boolean(), nullable=False),
        sa.Column("available_from_us", sa.BigInteger()),
        sa.Column("available_until_us", sa.BigInteger()),
        sa.Column("price", sa.Double()),
        sa.Column("currency", _ascii(3)),
        sa.Column(
            "created_at_us",
            sa.BigInteger(),
            nullable=False,
            comment="the item's own age as its owner states it; first sight otherwise",
        ),
        sa.Column("properties", _JSON, nullable=False),
        sa.Column("embeddings", _JSON, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="value of counters.catalogue when last changed"),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("item_index", name="pk_items"),
        sa.UniqueConstraint("item_id", name="uq_items_item_id"),
        **_MYSQL,
    )
    op.create_index("ix_items_revision", "items", ["revision"])

    op.create_table(
        "models",
        sa.Column("version", _ascii(64), nullable=False),
        sa.Column("kind", _ascii(8), nullable=False, comment="model or index"),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("manifest", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_models"),
        **_MYSQL,
    )
    op.create_table(
        "recommendation_items",
        sa.Column("recommendation_id", _ascii(64), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("item_index", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("source_bits", sa.Integer(), nullable=False),
        sa.Column("served_day", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("recommendation_id", "position", name="pk_recommendation_items"),
        **_MYSQL,
    )
    op.create_index("ix_recommendation_items_served_day", "recommendation_items", ["served_day"])

    op.create_table(
        "recommendations",
        sa.Column("recommendation_id", _ascii(64), nullable=False),
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column("scene", _ascii(64), nullable=False),
        sa.Column("served_at_us", sa.BigInteger(), nullable=False),
        sa.Column("served_day", sa.Integer(), nullable=False),
        sa.Column("release", _ascii(64), nullable=False),
        sa.Column("model_version", _ascii(64)),
        sa.Column("index_version", _ascii(64)),
        sa.Column("took_us", sa.Integer(), nullable=False),
        sa.Column("degraded", _JSON, nullable=False),
        sa.Column("request", _JSON, nullable=False),
        sa.Column("seed", sa.BigInteger()),
        sa.PrimaryKeyConstraint("recommendation_id", name="pk_recommendations"),
        **_MYSQL,
    )
    op.create_index("ix_recommendations_served_day", "recommendations", ["served_day"])
    op.create_index("ix_recommendations_user_key_served_at_us", "recommendations", ["user_key", "served_at_us"])

    op.create_table(
        "user_state",
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column(
            "revision", sa.BigInteger(), nullable=False, comment="counts committed changes to the user's history"
        ),
        sa.Column(
            "dirty_since_us",
            sa.BigInteger(),
            nullable=True,
            comment="set by the commit that changed the history; cleared once Redis holds it",
        ),
        sa.Column(
            "deleted_at_us",
            sa.BigInteger(),
            nullable=True,
            comment="late events are refused until the user is PUT again",
        ),
        sa.Column("merged_into", _ascii(258), comment="later events of this visitor belong to that user"),
        sa.PrimaryKeyConstraint("user_key", name="pk_user_state"),
        **_MYSQL,
    )
    op.create_index("ix_user_state_dirty_since_us", "user_state", ["dirty_since_us"])

    op.create_table(
        "users",
        sa.Column("user_key", _ascii(258), nullable=False),
        sa.Column("properties", _JSON, nullable=False),
        sa.Column("segments", _JSON, nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_key", name="pk_users"),
        **_MYSQL,
    )


def downgrade() -> None:
    op.drop_table("users")
    op.drop_table("user_state")
    op.drop_table("recommendations")
    op.drop_table("recommendation_items")
    op.drop_table("models")
    op.drop_table("items")
    op.drop_table("item_daily")
    op.drop_table("import_progress")
    op.drop_table("feedback")
    op.drop_table("events")
    op.drop_table("deployments")
    op.drop_table("deletions")
    op.drop_table("counters")
    op.drop_table("api_keys")
