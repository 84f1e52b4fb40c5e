"""What the daily purge takes of experiments that have long been stopped: nothing of one that runs or is a draft.

What each unit did goes first: reports read the sums made of it, and a build leaves such an experiment alone. The sums
go much later, with the exposures, which until then lead a deletion to all that is kept of a user.
"""

from __future__ import annotations

from sqlalchemy import Connection, Table, select

from shared.storage.statements import delete_rows
from shared.storage.tables import (
    experiment_daily,
    experiment_excluded_units,
    experiment_item_daily,
    experiment_latency_daily,
    experiment_losses,
    experiment_progress,
    experiment_quality_daily,
    experiment_unit_days,
    experiments,
    exposures,
)

UNITS: tuple[Table, ...] = (experiment_unit_days,)
RESULTS: tuple[Table, ...] = (
    exposures,
    experiment_progress,  # without it a report is empty, so none is read while it goes
    experiment_daily,
    experiment_quality_daily,
    experiment_item_daily,
    experiment_latency_daily,
    experiment_losses,
    experiment_excluded_units,
)


def purge_stopped(connection: Connection, table: Table, before_us: int, chunk_rows: int) -> int:
    """Up to `chunk_rows` rows of experiments that stopped before `before_us`; fewer than that: there are no more. All
    these tables' keys begin with the experiment."""
    stopped = select(experiments.c.experiment).where(
        experiments.c.status == "stopped", experiments.c.stopped_at_us < before_us
    )
    names = list(connection.scalars(stopped))
    if not names:
        return 0
    keys = select(*table.primary_key).where(table.c.experiment.in_(names)).limit(chunk_rows)
    return delete_rows(connection, table, connection.execute(keys).all())
