"""Brings a database to this release's schema. Safe to call from several processes at once, and again."""

from __future__ import annotations

import contextlib
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
    with database.read() as connection:
        now = MigrationContext.configure(connection).get_current_revision()
    if now is not None:
        _known(scripts, now)
    return now != scripts.get_current_head()


def upgrade(database: Database) -> None:
    """Applies what is missing, one process at a time. Raises DatabaseUnavailable, ConfigurationError."""
    if not pending(database):
        return
    config = _config()
    with database.write() as connection, _alone(connection):
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    # ConfigParser would read a % of the path as an interpolation.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _known(scripts: ScriptDirectory, revision: str) -> None:
    try:
        scripts.get_revision(revision)
    except CommandError:
        raise ConfigurationError(
            f"the database has schema {revision}, which this release does not know: it is newer; upgrade SilkRec"
        ) from None


@contextlib.contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """MySQL commits at each DDL statement, so a named lock excludes others; SQLite's own write lock already does."""
    if connection.dialect.name == "sqlite":
        yield
        return
    if not connection.scalar(text("SELECT GET_LOCK(:name, :wait)"), {"name": LOCK_NAME, "wait": LOCK_WAIT_S}):
        raise DatabaseUnavailable(f"another process has been changing the schema for {LOCK_WAIT_S} s")
    try:
        yield
    finally:
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": LOCK_NAME})
