"""Brings a backup back. Everything is verified before anything is written."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from services.cli.backup import rows, sqlite_file
from services.cli.backup.create import KINDS
from services.cli.backup.folder import BackupManifest, verified
from shared.errors import Conflict, ValidationFailed
from shared.settings.roots import Settings
from shared.storage import migrate
from shared.storage.artifacts import MANIFEST_NAME, sha256_of, sync
from shared.storage.database import Database


def restore(settings: Settings, database: Database, folder: Path, *, replace: bool) -> BackupManifest:
    """Artifacts, then rows, then this release's schema. Raises ArtifactError for a damaged backup, Conflict when the
    database holds rows and `replace` is off, ValidationFailed for a backup of the other kind of database."""
    manifest = verified(folder)
    kind = "sqlite" if database.is_sqlite else "mysql"
    if manifest.database != kind:
        raise ValidationFailed(
            f"{folder} is of a {manifest.database} database and database.url names a {kind} one: "
            "set SILKREC_DATABASE__URL"
        )
    held = sqlite_file.filled(Path(str(database.url.database))) if database.is_sqlite else rows.filled(database)
    if held and not replace:
        raise Conflict(
            f"{database.url.render_as_string(hide_password=True)} holds rows ({', '.join(held[:4])}…); "
            "give --replace to lose them, or name another database"
        )
    _artifacts(folder / "artifacts", settings.artifacts_dir())
    if database.is_sqlite:
        sqlite_file.copy_in(folder / "database", Path(str(database.url.database)))
    else:
        rows.drop_all(database)
        migrate.upgrade(database, manifest.revision)
        rows.copy_in(database, folder / "database", manifest.serials)
    migrate.upgrade(database)
    return manifest


def _artifacts(source: Path, target: Path) -> None:
    """A version that is there already must be the same: versions never change. Raises Conflict."""
    for kind in KINDS:
        for folder in sorted(path.parent for path in (source / kind).glob(f"*/{MANIFEST_NAME}")):
            final = target / kind / folder.name
            if final.exists():
                _check_same(folder, final)
                continue
            staged = final.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            shutil.copytree(folder, staged)
            for path in (*staged.rglob("*"), staged):
                sync(path)
            staged.rename(final)
            sync(final.parent)


def _check_same(folder: Path, final: Path) -> None:
    for path in folder.iterdir():
        if not (final / path.name).is_file() or sha256_of(path) != sha256_of(final / path.name):
            raise Conflict(f"{final} is not what the backup has under that name; move it away first")
