"""Run by alembic, on the connection that `shared.storage.migrate` hands over."""

from __future__ import annotations

from alembic import context

from shared.storage.migrate import APPLIED
from shared.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a table by copying it; alembic hides that behind batch operations.
    render_as_batch=True,
    version_table=APPLIED,
)
with context.begin_transaction():
    context.run_migrations()
