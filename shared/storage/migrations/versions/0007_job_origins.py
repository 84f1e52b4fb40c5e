"""Which request asked for a job: its id in the logs, and the trace that its chunks are linked to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _ascii(length: int) -> TypeEngine[str]:
    ascii_bin = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(ascii_bin, "mysql", "mariadb")


def upgrade() -> None:
    asked = sa.Column("request_id", _ascii(128), comment="of the request that asked for it; none: a schedule did")
    op.add_column("jobs", asked)
    traced = sa.Column("traceparent", _ascii(55), comment="its trace, which those of the chunks are linked to")
    op.add_column("jobs", traced)


def downgrade() -> None:
    for name in ("traceparent", "request_id"):
        op.drop_column("jobs", name)
