"""Fixtures over real stores. A missing program skips on a developer's machine and fails under CI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from shared.settings.load import Loaded, load_settings
from shared.settings.roots import DatabaseSettings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import metadata
from tests.servers import MariaDB, Missing, RedisServer, mariadb, redis_server

SettingsFactory = Callable[..., Loaded]


def pytest_configure(config: pytest.Config) -> None:
    # A SILKREC_* variable of the developer's shell must not reach the tests.
    for name in [name for name in os.environ if name.startswith("SILKREC_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    with needed():
        server = mariadb(tmp_path_factory.mktemp("mariadb"))
        running = server.__enter__()
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with needed():
        server = redis_server(tmp_path_factory.mktemp("redis"))
        running = server.__enter__()
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture
def redis_url(redis_process: RedisServer) -> str:
    """A private Redis, empty."""
    with redis.Redis.from_url(redis_process.url) as client:
        client.flushall()
    return redis_process.url


@pytest.fixture(scope="session")
def _mariadb_database(mariadb_server: MariaDB) -> Iterator[Database]:
    yield from _migrated(mariadb_server.create_schema("tests"))


@pytest.fixture(scope="session")
def _sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from _migrated(f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'silkrec.db'}")


@pytest.fixture(params=["sqlite", "mariadb"])
def database(request: pytest.FixtureRequest) -> Database:
    """The schema of this release with empty tables, on SQLite and on a private MariaDB."""
    found: Database = request.getfixturevalue(f"_{request.param}_database")
    with found.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    return found


@pytest.fixture
def settings_factory(database: Database, redis_url: str, tmp_path: Path) -> SettingsFactory:
    """`settings_factory(**{"features.port": 0})`: settings over the test's stores, with dotted overrides."""
    config = tmp_path / "silkrec.yaml"
    config.touch()  # the defaults, whatever lies in the current folder

    def make(**overrides: Any) -> Loaded:
        stores = {
            "state_dir": tmp_path / "var",
            "database.url": database.url.render_as_string(hide_password=False),
            "redis.url": redis_url,
        }
        return load_settings(config, env={}, overrides={**stores, **overrides})

    return make


def _migrated(url: str) -> Iterator[Database]:
    database = Database(url, DatabaseSettings())
    try:
        migrate.upgrade(database)
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def needed() -> Iterator[None]:
    try:
        yield
    except Missing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
