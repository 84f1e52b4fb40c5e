"""An index by which engines find the users that were deleted since they last looked."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_user_state_deleted_at_us", "user_state", ["deleted_at_us"])


def downgrade() -> None:
    op.drop_index("ix_user_state_deleted_at_us", "user_state")
