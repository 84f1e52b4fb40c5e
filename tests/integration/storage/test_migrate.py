from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, inspect, text

from shared.errors import ConfigurationError
from shared.settings.roots import DatabaseSettings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import metadata
from tests.servers import MariaDB

pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "mariadb"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'with 100%' / 'silkrec.db'}"
    else:
        server: MariaDB = request.getfixturevalue("mariadb_server")
        url = server.create_schema("migrating")
    database = Database(url, DatabaseSettings())
    yield database
    database.close()


def test_the_migrations_make_exactly_the_declared_tables(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_migrated_database_is_no_longer_pending_and_upgrading_again_changes_nothing(empty: Database) -> None:
    assert migrate.pending(empty)
    migrate.upgrade(empty)
    assert not migrate.pending(empty)
    migrate.upgrade(empty)
    with empty.read() as connection:
        assert set(metadata.tables) < set(inspect(connection).get_table_names())


def test_processes_that_start_together_migrate_once(empty: Database) -> None:
    failures: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate.upgrade(empty)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not migrate.pending(empty)


def test_the_lock_is_held_until_others_see_the_new_schema(empty: Database) -> None:
    """SQLite has no named lock: its write lock ends with the transaction itself."""
    seen: list[bool] = []

    def look(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "RELEASE_LOCK" in statement:
            seen.append(migrate.pending(empty))

    event.listen(empty.engine, "before_cursor_execute", look)
    migrate.upgrade(empty)
    assert seen == ([] if empty.is_sqlite else [False])


def test_a_database_of_a_newer_release_is_refused_with_what_to_do(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="upgrade SilkRec"):
        migrate.pending(empty)
