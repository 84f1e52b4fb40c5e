from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import event, inspect, text

from shared.errors import ConfigurationError
from shared.settings.roots import DatabaseSettings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import metadata
from tests.servers import MariaDB

pytestmark = pytest.mark.integration
SCRIPTS = list(ScriptDirectory(str(migrate.FOLDER)).walk_revisions())


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
        context = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": migrate.APPLIED})
        found = [one for one in compare_metadata(context, metadata) if getattr(one[1], "name", "") != migrate.FLOOR]
        assert found == []


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
        connection.execute(text("UPDATE schema_applied SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="upgrade SilkRec"):
        migrate.pending(empty)


def test_a_newer_schema_is_used_while_its_floor_is_known(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.write() as connection:
        connection.execute(text("UPDATE schema_applied SET version_num = '9999'"))
    assert not migrate.pending(empty)
    migrate.upgrade(empty)
    assert migrate.revision(empty) == "9999"


def test_a_migration_that_only_adds_leaves_the_floor_where_the_release_before_stands(empty: Database) -> None:
    """`alembic_version` alone is what a release before `schema_applied` leaves."""
    migrate.upgrade(empty, "0006")
    with empty.write() as connection:
        connection.execute(text("DROP TABLE schema_applied"))
    assert migrate.pending(empty)
    migrate.upgrade(empty)
    with empty.read() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0006"
    assert migrate.revision(empty) == "0009"
    assert not migrate.pending(empty)


def test_what_is_missing_says_which_of_it_ends_the_way_back(empty: Database) -> None:
    everything = [one.revision for one in reversed(SCRIPTS)]
    assert [(one.revision, one.contracts) for one in migrate.missing(empty)] == [(name, None) for name in everything]
    migrate.upgrade(empty, "0003")
    found = migrate.missing(empty)
    assert [one.revision for one in found] == everything[3:]
    assert [one.revision for one in found if one.contracts is not None] == ["0004"]
    assert "took_us" in str(found[0].contracts)
    assert all(one.does for one in found)
    migrate.upgrade(empty)
    assert migrate.missing(empty) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: one.revision)
def test_a_migration_that_takes_away_says_so(script: Script) -> None:
    """Whatever the SQL of the release before could meet: what is gone, renamed, changed, or must be given."""
    out = io.StringIO()
    context = MigrationContext.configure(dialect_name="mysql", opts={"as_sql": True, "output_buffer": out})
    with Operations.context(context):
        script.module.upgrade()
    changes = [
        one.strip() for one in out.getvalue().split(";\n") if not re.match(r"\s*(CREATE TABLE|CREATE INDEX)", one)
    ]
    adds = re.compile(r"(?s)ALTER TABLE \S+ ADD COLUMN |INSERT INTO counters")
    takes_away = [one for one in changes if one and not (adds.match(one) and _has_default(one))]
    assert bool(takes_away) == bool(getattr(script.module, "contracts", None)), takes_away


def _has_default(statement: str) -> bool:
    return "NOT NULL" not in statement or "DEFAULT" in statement
