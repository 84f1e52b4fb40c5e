"""Brings a database to this release's schema. Safe to call from several processes at once, and again.

Two tables hold a revision. `schema_applied`: what the schema is. `alembic_version`: the floor, the oldest schema whose
releases still work here. A release that meets a newer schema runs if it knows the floor, so N-1 may be started again
behind N's migrations. Only a migration that declares `contracts` (what it takes away, and which release stopped using
it) raises the floor.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from shared.errors import ConfigurationError, DatabaseUnavailable
from shared.storage.database import Database

FOLDER = Path(__file__).with_name("migrations")
LOCK_NAME = "silkrec.migrate"
APPLIED, FLOOR = "schema_applied", "alembic_version"
# A table of a hundred million events takes minutes to change; another process waits that long before it gives up.
LOCK_WAIT_S = 600


@dataclass(frozen=True, slots=True)
class Migration:
    """`contracts`: what it takes away, and which release stopped using it: behind it the release before cannot be
    started again. None: it only adds, or nobody of an earlier release was ever here."""

    revision: str
    does: str
    contracts: str | None


def pending(database: Database) -> bool:
    """Is the schema older than this release's, or absent? Raises ConfigurationError when it is newer and its floor is,
    too."""
    scripts = ScriptDirectory.from_config(_config())
    with database.read() as connection:
        now, floor = _current(connection, APPLIED), _current(connection, FLOOR)
    now = now or floor
    if now is None or _knows(scripts, now):
        return now != scripts.get_current_head()
    if floor is None or not _knows(scripts, floor):
        raise ConfigurationError(
            f"the database has schema {now}, which this release does not know: it is newer; upgrade SilkRec"
        )
    return False


def revision(database: Database) -> str | None:
    """Of the schema that the database has; None: none yet."""
    with database.read() as connection:
        return _current(connection, APPLIED) or _current(connection, FLOOR)


def missing(database: Database) -> list[Migration]:
    """Those still to be applied, oldest first; none to a schema that is newer. Raises as `pending` does."""
    if not pending(database):
        return []
    now = revision(database)
    found = _missing(ScriptDirectory.from_config(_config()), now)
    return [Migration(one.revision, one.doc, None if now is None else _contracts(one)) for one in found]


def upgrade(database: Database, to: str = "head") -> None:
    """Applies what is missing, one process at a time; `to`: an earlier revision, for an empty database. Raises
    DatabaseUnavailable, ConfigurationError."""
    if to != "head":
        _known(ScriptDirectory.from_config(_config()), to)
    if not pending(database):
        return
    if database.is_sqlite:  # its own write lock excludes others
        with database.write() as connection:
            _apply(connection, to)
        return
    with database.read() as connection, _alone(connection):
        _apply(connection, to)
        # Before the lock goes: who gets it next must see the new revision, or it makes the same tables again.
        connection.commit()


def _apply(connection: Connection, to: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    applied, floor = _context(connection, APPLIED), _context(connection, FLOOR)
    before = _current(connection, APPLIED) or _current(connection, FLOOR)
    # Before anything is taken away: a release that cannot live without it must not be started any more.
    raised = [one.revision for one in _missing(scripts, before) if _contracts(one)]
    if before is not None:
        if raised:
            floor.stamp(scripts, raised[-1])
        applied.stamp(scripts, before)
    command.upgrade(config, to)
    if before is None:  # nobody of an earlier release was ever here
        floor.stamp(scripts, to)


def _missing(scripts: ScriptDirectory, now: str | None) -> list[Script]:
    """Oldest first."""
    return list(reversed(list(scripts.iterate_revisions("head", now or "base"))))


def _contracts(script: Script) -> str | None:
    return getattr(script.module, "contracts", None)


def _context(connection: Connection, table: str) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": table})


def _current(connection: Connection, table: str) -> str | None:
    return _context(connection, table).get_current_revision()


def _config() -> Config:
    config = Config()
    # ConfigParser would read a % of the path as an interpolation.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _knows(scripts: ScriptDirectory, name: str) -> bool:
    try:
        return scripts.get_revision(name) is not None
    except CommandError:
        return False


def _known(scripts: ScriptDirectory, name: str) -> None:
    if not _knows(scripts, name):
        raise ConfigurationError(
            f"the database has schema {name}, which this release does not know: it is newer; upgrade SilkRec"
        )


@contextlib.contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """MySQL commits at each DDL statement, so a named lock excludes others. It is asked for again and again, because
    one statement may not take longer than `database.statement_timeout_s`."""
    give_up_at = time.monotonic() + LOCK_WAIT_S
    while not connection.scalar(text("SELECT GET_LOCK(:name, 1)"), {"name": LOCK_NAME}):
        if time.monotonic() > give_up_at:
            raise DatabaseUnavailable(f"another process has been changing the schema for {LOCK_WAIT_S} s")
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": LOCK_NAME})
