"""The database handle: MySQL/MariaDB or SQLite behind the same three calls.

`read()` and `write()` are context managers on a connection for threads; `run()` takes a function into a bounded thread
pool for asyncio. Connection losses become DatabaseUnavailable, so callers never see a driver's exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from shared.errors import ConfigurationError, DatabaseUnavailable
from shared.observability.resources import PoolUse
from shared.settings.roots import DatabaseSettings

T = TypeVar("T")

_IMMEDIATE = "silkrec_immediate"
# MySQL 1213 deadlock, 1205 lock wait time-out: the transaction was rolled back and is worth repeating.
_MYSQL_REPEATABLE = {1205, 1213}
WRITE_ATTEMPTS = 6


def _to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


# The standard library's writer took 90 of the 107 ms of 500 items with an embedding of 384 numbers each.
_JSON: dict[str, Any] = {"json_serializer": _to_json, "json_deserializer": orjson.loads}


class Database:
    """One engine a process. Thread-safe. Close it when the process ends."""

    def __init__(self, url: str, settings: DatabaseSettings) -> None:
        try:
            self.url = make_url(url)
        except ArgumentError:
            raise ConfigurationError(
                "database.url is no SQLAlchemy URL, e.g. mysql+pymysql://user:password@host/silkrec"
            ) from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if not self.is_sqlite and self.url.drivername not in ("mysql+pymysql", "mariadb+pymysql"):
            raise ConfigurationError(
                f"database.url: {self.url.drivername} is not supported; use mysql+pymysql:// or sqlite://"
            )
        self.engine = _sqlite_engine(self.url.database, settings) if self.is_sqlite else _mysql_engine(url, settings)
        self.connections = settings.pool_size
        self._threads = ThreadPoolExecutor(self.connections, thread_name_prefix="database")
        self._asked = 0
        self._waited_s = 0.0
        self._counting = threading.Lock()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for SELECTs. Raises DatabaseUnavailable."""
        with _translated(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end of the block. Raises DatabaseUnavailable.

        On SQLite it takes the write lock at once (BEGIN IMMEDIATE): one upgraded in mid-transaction fails unwaited."""
        with _translated(), self.engine.connect() as connection:
            connection.execution_options(**{_IMMEDIATE: True})
            with connection.begin():
                yield connection

    def transact(self, work: Callable[[Connection], T]) -> T:
        """`write()` around `work`, repeated after deadlocks; `work` must be safe to run again."""
        for attempt in range(WRITE_ATTEMPTS):
            try:
                with self.write() as connection:
                    return work(connection)
            except DatabaseUnavailable as error:
                if attempt == WRITE_ATTEMPTS - 1 or not _is_repeatable(error.__cause__):
                    raise
            time.sleep(random.uniform(0.002, 0.01) * 2**attempt)
        raise AssertionError("unreachable")

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)` in the pool of `pool_size` threads."""
        self._asked += 1
        if self._asked > self.connections:
            work = self._timed(work)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        finally:
            self._asked -= 1

    def use(self) -> PoolUse:
        """`waiting`: calls of `run` beyond the threads there are."""
        pool = self.engine.pool
        in_use = pool.checkedout() if isinstance(pool, QueuePool) else 0
        return PoolUse(in_use, self.connections, max(0, self._asked - self.connections), self._waited_s)

    def _timed(self, work: Callable[..., T]) -> Callable[..., T]:
        asked = time.monotonic()

        def begun(*args: Any) -> T:
            with self._counting:
                self._waited_s += time.monotonic() - asked
            return work(*args)

        return begun

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.engine.dispose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise DatabaseUnavailable(f"the database does not answer: {_short(error)}", retry_after_s=1.0) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable("the database connection was lost", retry_after_s=1.0) from error
        raise


def _short(error: Exception) -> str:
    """The driver's words without SQL, parameters or the address."""
    cause = getattr(error, "orig", None)
    return type(cause or error).__name__ if cause is None else str(cause.args[0] if cause.args else cause)[:120]


def _is_repeatable(cause: BaseException | None) -> bool:
    driver = getattr(cause, "orig", None)
    if driver is None or not driver.args:
        return False
    return driver.args[0] in _MYSQL_REPEATABLE or "database is locked" in str(driver.args[0])


def _mysql_engine(url: str, settings: DatabaseSettings) -> Engine:
    return create_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.connect_timeout_s,
        pool_pre_ping=True,
        pool_recycle=1800,
        **_JSON,
        isolation_level="READ COMMITTED",  # gap locks of REPEATABLE READ deadlock grouped upserts
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": max(1, round(settings.connect_timeout_s)),
            "read_timeout": settings.statement_timeout_s,
            "write_timeout": settings.statement_timeout_s,
        },
    )


def _sqlite_engine(path: str | None, settings: DatabaseSettings) -> Engine:
    if not path or path == ":memory:":
        raise ConfigurationError("database.url: SQLite needs a file, because several processes share it")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch(mode=0o600)  # it holds what users did; SQLite gives its journals the same mode
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be made ({error.strerror}); set SILKREC_STATE_DIR to a folder that can be written"
        ) from None
    engine = create_engine(f"sqlite:///{path}", pool_size=settings.pool_size, max_overflow=0, **_JSON)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is off; _begin below says which kind
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(settings.statement_timeout_s * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged event survives a power cut, as with InnoDB
        cursor.execute("PRAGMA cache_size=-65536")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get(_IMMEDIATE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
