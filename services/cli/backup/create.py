"""Takes a backup while everything runs."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from services.cli.backup import rows, sqlite_file
from services.cli.backup.folder import BackupManifest, backups, publish, staging
from shared.errors import ConfigurationError
from shared.settings.roots import Settings
from shared.storage import backup_time, migrate
from shared.storage.artifacts import MANIFEST_NAME
from shared.storage.database import Database

KINDS = ("models", "indexes")


def create(settings: Settings, database: Database, root: Path, *, keep: int) -> tuple[Path, BackupManifest]:
    """A new folder in `root`; of older ones the newest `keep - 1` stay (0: all). Raises DatabaseUnavailable, OSError.

    The database comes first: whatever release its rows name was published before, so its folders are there after."""
    revision = migrate.revision(database)
    if revision is None:
        raise ConfigurationError("there is no schema to back up: no service has run on this database")
    now = datetime.now(UTC)
    with staging(root) as folder:
        (folder / "database").mkdir()
        counted, serials = _database(database, folder / "database")
        _artifacts(settings.artifacts_dir(), folder / "artifacts")
        manifest = BackupManifest(
            created_at=now,
            silkrec=metadata.version("silkrec"),
            database="sqlite" if database.is_sqlite else "mysql",
            revision=revision,
            rows=counted,
            serials=serials,
        )
        done = publish(folder, manifest)
    with database.write() as connection:
        backup_time.tell(connection, int(now.timestamp() * 1e6))
    for old in backups(root)[:-keep] if keep else ():
        shutil.rmtree(old)
    return done


def _database(database: Database, folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    if database.is_sqlite:
        return sqlite_file.copy_out(Path(str(database.url.database)), folder), {}
    exported = rows.copy_out(database, folder)
    return exported.rows, exported.serials


def _artifacts(source: Path, target: Path) -> None:
    """Published folders only: they never change, so they may be copied one after the other."""
    for kind in KINDS:
        for manifest in sorted((source / kind).glob(f"[!.]*/{MANIFEST_NAME}")):
            shutil.copytree(manifest.parent, target / kind / manifest.parent.name)
