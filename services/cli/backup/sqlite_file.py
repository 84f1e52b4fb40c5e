"""SQLite by its online backup: other processes read and write meanwhile.

https://www.sqlite.org/backup.html
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from shared.errors import DatabaseUnavailable
from shared.storage import migrate

FILE = "silkrec.db"
# All pages in one step: a copy in steps begins anew with each write of another process; in WAL mode nobody waits.
ALL_PAGES = -1


def copy_out(source: Path, folder: Path) -> dict[str, int]:
    """The database as of now; returns rows by table. Raises DatabaseUnavailable."""
    target = folder / FILE
    with _opened(source) as there, _opened(target) as here:
        there.backup(here, pages=ALL_PAGES)
        here.execute("PRAGMA journal_mode=DELETE")  # one file, without a WAL beside it
        wrong = [row[0] for row in here.execute("PRAGMA quick_check") if row[0] != "ok"]
        if wrong:
            raise DatabaseUnavailable(f"the copy of {source} is damaged: {wrong[0]}; look at the disk")
        return {name: _count(here, name) for name in _tables(here)}


def copy_in(folder: Path, target: Path) -> None:
    """In one transaction of the target, whatever it held. Raises DatabaseUnavailable when somebody writes to it."""
    with _opened(folder / FILE) as there, _opened(target) as here:
        there.backup(here, pages=ALL_PAGES)


def filled(path: Path) -> list[str]:
    """Tables that hold rows."""
    if not path.exists():
        return []
    with _opened(path) as here:
        found = [name for name in _tables(here) if name not in (migrate.APPLIED, migrate.FLOOR)]
        return [name for name in found if here.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()]  # noqa: S608


def _tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return sorted(row[0] for row in found)


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])  # noqa: S608  (names of its own)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=10)
    try:
        yield connection
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"{path}: {error}") from error
    finally:
        connection.close()
