"""A backup of a running database, brought back into another one, on SQLite and on MariaDB."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from services.cli.backup import folder as folders
from services.cli.backup.create import create
from services.cli.backup.restore import restore
from services.features.backup_age import BackupAge
from shared.errors import ArtifactError, Conflict, ValidationFailed
from shared.observability.metrics import Metrics
from shared.settings.load import load_settings
from shared.settings.roots import DatabaseSettings, Settings
from shared.storage import backup_time, migrate
from shared.storage.database import Database
from shared.storage.tables import events, items, metadata
from tests.servers import MariaDB

pytestmark = pytest.mark.integration
EVENTS = 5000


def settings_in(state: Path) -> Settings:
    return load_settings(env={}, overrides={"state_dir": state}).settings


@pytest.fixture(params=["sqlite", "mariadb"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Database, Database]]:
    """A filled database, and an empty one without a schema."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("old", "new")]
    if request.param == "mariadb":
        server: MariaDB = request.getfixturevalue("mariadb_server")
        urls = [server.create_schema(f"backup_{name}") for name in ("old", "new")]
    old, new = (Database(url, DatabaseSettings()) for url in urls)
    migrate.upgrade(old)
    with old.write() as connection:
        connection.execute(insert(items), [item(1, "名字 ' \\ \" \n", 0.1 + 0.2), item(7, None, None)])
        connection.execute(insert(events), [event(number) for number in range(EVENTS)])
    yield old, new
    old.close()
    new.close()


def item(index: int, title: str | None, price: float | None) -> dict[str, Any]:
    return {
        "item_index": index, "item_id": f"i{index}", "known": True, "title": title, "categories": ["a", "b"],
        "is_hidden": False, "price": price, "created_at_us": 1, "properties": {"名": [1, None]}, "embeddings": {},
        "revision": 1, "updated_at_us": 2**50,
    }  # fmt: skip


def event(number: int) -> dict[str, Any]:
    return {
        "event_id": f"e{number}", "occurred_day": 1, "user_key": "u:1", "item_index": 1, "action": 2,
        "event_value": number / 7, "occurred_at_us": number, "received_at_us": number,
    }  # fmt: skip


def content(database: Database) -> dict[str, list[Any]]:
    """Every row of every table as stored, without the time of the backup itself."""
    with database.read() as connection:
        return {
            table.name: sorted(
                tuple(row)
                for row in connection.execute(text(f"SELECT * FROM {table.name}"))  # noqa: S608
                if row[0] != "backup_at_us"
            )
            for table in metadata.sorted_tables
        }


def artifact(state: Path, text_: str = "weights") -> Path:
    place = settings_in(state).artifacts_dir() / "models" / "m-1"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    (place / "model.bin").write_text(text_)
    return place


def test_a_restored_database_holds_every_row_and_one_with_rows_is_replaced_only_when_told(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    old, new = pair
    artifact(tmp_path / "old")
    before = content(old)
    folder, manifest = create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=0)
    assert manifest.rows["events"] == EVENTS
    restore(settings_in(tmp_path / "new"), new, folder, replace=False)
    assert content(new) == before
    assert not migrate.pending(new)
    restored = settings_in(tmp_path / "new").artifacts_dir() / "models" / "m-1" / "model.bin"
    assert restored.read_text() == "weights"
    with new.write() as connection:
        made = connection.execute(insert(events).values({**event(EVENTS), "event_id": "next"}))
        assert made.inserted_primary_key is not None
        assert made.inserted_primary_key[0] > EVENTS, "numbers are not given twice"
        connection.execute(items.delete())
    changed = content(new)
    with pytest.raises(Conflict, match="--replace"):
        restore(settings_in(tmp_path / "new"), new, folder, replace=False)
    assert content(new) == changed
    restore(settings_in(tmp_path / "new"), new, folder, replace=True)
    assert content(new) == before


@pytest.mark.parametrize("pair", ["mariadb"], indirect=True)
def test_rows_that_are_written_meanwhile_are_whole_transactions_or_absent(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    old, new = pair
    stop, written = threading.Event(), threading.Event()

    def write_pairs() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with old.write() as connection:
                connection.execute(insert(items), [item(1000 + number, f"t{number}", 1.0)])
                connection.execute(
                    insert(events), [{**event(0), "event_id": f"p{number}", "item_index": 1000 + number}]
                )
            written.set()

    writer = threading.Thread(target=write_pairs)
    writer.start()
    try:
        assert written.wait(20)
        folder, _ = create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=0)
    finally:
        stop.set()
        writer.join()
    restore(settings_in(tmp_path / "new"), new, folder, replace=False)
    with new.read() as connection:
        bought = set(connection.scalars(select(events.c.item_index).where(events.c.item_index > 1000)))
        assert set(connection.scalars(select(items.c.item_index).where(items.c.item_index > 1000))) == bought
        assert bought


@pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
def test_a_damaged_backup_is_refused_before_anything_is_written(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    old, new = pair
    folder, manifest = create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=0)
    victim = folder / next(name for name in manifest.files if name.startswith("database/"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="sha256"):
        restore(settings_in(tmp_path / "new"), new, folder, replace=False)
    assert migrate.revision(new) is None


@pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
def test_an_artifact_that_differs_under_the_same_version_is_not_overwritten(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    old, new = pair
    artifact(tmp_path / "old")
    folder, _ = create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=0)
    kept = artifact(tmp_path / "new", "others")
    with pytest.raises(Conflict, match="m-1"):
        restore(settings_in(tmp_path / "new"), new, folder, replace=False)
    assert (kept / "model.bin").read_text() == "others"


@pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
def test_a_backup_that_fails_leaves_nothing_and_tells_no_time(pair: tuple[Database, Database], tmp_path: Path) -> None:
    old, _ = pair
    place = artifact(tmp_path / "old")
    (place / "model.bin").unlink()
    (place / "model.bin").symlink_to("nowhere")
    with pytest.raises(OSError, match="No such file"):
        create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=0)
    assert list((tmp_path / "backups").iterdir()) == []
    with old.read() as connection:
        assert backup_time.told(connection) is None


@pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
def test_only_the_newest_are_kept_and_a_backup_of_another_kind_is_refused(
    pair: tuple[Database, Database], tmp_path: Path
) -> None:
    old, new = pair
    older = tmp_path / "backups" / "silkrec-20200101-000000"
    older.mkdir(parents=True)
    (older / folders.MANIFEST).write_text("{}")
    folder, manifest = create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=1)
    assert folders.backups(tmp_path / "backups") == [folder]
    other = manifest.model_copy(update={"database": "mysql"})
    (folder / folders.MANIFEST).write_text(other.model_dump_json())
    with pytest.raises(ValidationFailed, match="SILKREC_DATABASE__URL"):
        restore(settings_in(tmp_path / "new"), new, folder, replace=False)


@pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
def test_the_age_is_exported_once_there_is_a_backup(pair: tuple[Database, Database], tmp_path: Path) -> None:
    old, _ = pair
    metrics = Metrics("features")
    age = BackupAge(old, metrics)
    asyncio.run(age.look())
    assert b"backup_last_success" not in metrics.render()
    _, manifest = create(settings_in(tmp_path / "old"), old, tmp_path / "backups", keep=0)
    with old.read() as connection:
        assert backup_time.told(connection) == int(manifest.created_at.timestamp() * 1e6)
    asyncio.run(age.look())
    line = next(row for row in metrics.render().decode().splitlines() if row.startswith("silkrec_features_backup"))
    assert float(line.split()[-1]) == pytest.approx(manifest.created_at.timestamp())
