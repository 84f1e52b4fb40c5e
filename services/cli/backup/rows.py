"""Rows of a MySQL or MariaDB server as gzipped JSON Lines, one list a row, a file a table.

All tables are read in one REPEATABLE READ snapshot (https://mariadb.com/kb/en/start-transaction/) and streamed, so that
memory holds one row; they are written back in one transaction, so that a restore is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pymysql
from pymysql.cursors import Cursor, SSCursor

from shared.errors import DatabaseUnavailable
from shared.storage import migrate
from shared.storage.database import Database

VERSION_TABLES = (migrate.APPLIED, migrate.FLOOR)
# PyMySQL joins so many rows into statements of at most 1 MB.
ROWS_A_CALL = 2000
# Level 1 takes a third of the CPU of 6 and a tenth more room on our rows.
LEVEL = 1


@dataclass(frozen=True, slots=True)
class Exported:
    rows: dict[str, int]
    serials: dict[str, int]


def copy_out(database: Database, folder: Path) -> Exported:
    """Raises DatabaseUnavailable; also when another process changes the schema meanwhile."""
    with _connection(database) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            serials = _serials(cursor)
            tables = _tables(cursor)
        rows = {table: _write(connection, table, folder / f"{table}.jsonl.gz") for table in tables}
        connection.rollback()
    return Exported(rows, serials)


def copy_in(database: Database, folder: Path, serials: dict[str, int]) -> None:
    """Into empty tables of the same schema. Raises DatabaseUnavailable; nothing is written then."""
    with _connection(database) as connection, connection.cursor() as cursor:
        present = _tables(cursor)
        for table in present:
            path = folder / f"{table}.jsonl.gz"
            if path.exists():
                _read(cursor, table, path)
        connection.commit()
        for table, serial in serials.items():
            cursor.execute(f"ALTER TABLE `{table}` AUTO_INCREMENT = {int(serial)}")


def drop_all(database: Database) -> None:
    """Every table, with the schema's revision."""
    with _connection(database) as connection, connection.cursor() as cursor:
        for table in (*VERSION_TABLES, *_tables(cursor)):
            cursor.execute(f"DROP TABLE IF EXISTS `{table}`")


def filled(database: Database) -> list[str]:
    """Tables that hold rows."""
    with _connection(database) as connection, connection.cursor() as cursor:
        return [table for table in _tables(cursor) if cursor.execute(f"SELECT 1 FROM `{table}` LIMIT 1")]  # noqa: S608


def _write(connection: pymysql.Connection, table: str, path: Path) -> int:
    count = 0
    with connection.cursor(SSCursor) as cursor, gzip.open(path, "wb", LEVEL) as file:
        cursor.execute(f"SELECT * FROM `{table}`")  # noqa: S608  (a name of the server's)
        names = [column[0] for column in cursor.description or ()]
        file.write(orjson.dumps(names) + b"\n")
        while batch := cursor.fetchmany(ROWS_A_CALL):
            file.write(b"".join(orjson.dumps(row) + b"\n" for row in batch))
            count += len(batch)
    return count


def _read(cursor: Cursor, table: str, path: Path) -> None:
    with gzip.open(path, "rb") as file:
        names: list[str] = orjson.loads(file.readline())
        columns, places = ", ".join(f"`{name}`" for name in names), ", ".join(["%s"] * len(names))
        statement = f"INSERT INTO `{table}` ({columns}) VALUES ({places})"  # noqa: S608
        rows: Iterator[Any] = map(orjson.loads, file)
        while batch := list(itertools.islice(rows, ROWS_A_CALL)):
            cursor.executemany(statement, batch)


def _tables(cursor: Cursor) -> list[str]:
    cursor.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'"
    )
    return sorted(row[0] for row in cursor.fetchall() if row[0] not in VERSION_TABLES)


def _serials(cursor: Cursor) -> dict[str, int]:
    cursor.execute(
        "SELECT table_name, auto_increment FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND auto_increment IS NOT NULL"
    )
    return {row[0]: int(row[1]) for row in cursor.fetchall()}


@contextlib.contextmanager
def _connection(database: Database) -> Iterator[pymysql.Connection]:
    """One of its own, with the time-outs of the settings: the pool's have another isolation."""
    with database.read() as pooled:
        pooled.detach()
        connection = pooled.connection.dbapi_connection
        try:
            yield connection  # type: ignore[misc]
        except pymysql.Error as error:
            raise DatabaseUnavailable(f"the database refused: {error}") from error
