"""Brings a database to this release's schema. Safe to call from several processes at once, and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from shared.errors import ConfigurationError, DatabaseUnavailable
from shared.storage.database import Database

FOLDER = Path(__file__).with_name("migrations")
LOCK_NAME = "silkrec.migrate"
# A table of a hundred million events takes minutes to change; another process waits that long before it gives up.
LOCK_WAIT_S = 600


def pending(database: Database) -> bool:
    """Is the schema older than this release's, or absent? Raises ConfigurationError when it is newer."""
    scripts = ScriptDirectory.from_config(_config())
    now = revision(database)
    if now is not None:
        _known(scripts, now)
    return now != scripts.get_current_head()


def revision(database: Database) -> str | None:
    """Of the schema that the database has; None: none yet."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


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
    command.upgrade(config, to)


def _config() -> Config:
    config = Config()
    # ConfigParser would read a % of the path as an interpolation.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _known(scripts: ScriptDirectory, name: str) -> None:
    try:
        scripts.get_revision(name)
    except CommandError:
        raise ConfigurationError(
            f"the database has schema {name}, which this release does not know: it is newer; upgrade SilkRec"
        ) from None


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
