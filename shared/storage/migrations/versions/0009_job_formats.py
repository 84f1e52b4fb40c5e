"""The format of a job beside it, so that a worker leaves a newer one to a newer worker without reading its body."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    comment = "of spec, cursor and packed asks: workers take what they can read; 1 where the release before wrote it"
    op.add_column("jobs", sa.Column("format", sa.Integer(), nullable=False, server_default="1", comment=comment))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.drop_column("format")
