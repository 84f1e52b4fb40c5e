"""The folder of one backup: `manifest.json`, `database/…`, `artifacts/models|indexes/<version>/…`. Under its name it is
whole: it is made beside, synced, and renamed."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import ArtifactError
from shared.storage.artifacts import sha256_of, sync

FORMAT = 1
MANIFEST = "manifest.json"
PREFIX = "silkrec-"


class BackupFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class BackupManifest(BaseModel):
    """`revision`: of the schema; `rows`: by table; `files`: by path below the folder; `serials`: a server's next
    AUTO_INCREMENT by table, since indexes are never reused."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    created_at: datetime
    silkrec: str
    database: str
    revision: str
    rows: dict[str, int]
    serials: dict[str, int] = {}
    files: dict[str, BackupFile] = {}


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """An empty folder in `root` that only its owner enters; removed again unless `publish` moved it."""
    path = root / f".{PREFIX}{secrets.token_hex(4)}"
    path.mkdir(parents=True, mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(staged: Path, manifest: BackupManifest) -> tuple[Path, BackupManifest]:
    """The folder under its name, named by the manifest's time, and the manifest with `files` filled."""
    files = {
        str(path.relative_to(staged)): BackupFile(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    complete = manifest.model_copy(update={"files": files})
    (staged / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n", "utf-8")
    for path in (*staged.rglob("*"), staged):
        sync(path)
    # Milliseconds: a script and a timer may make one within the same second.
    final = staged.with_name(f"{PREFIX}{manifest.created_at.astimezone(UTC):%Y%m%d-%H%M%S-%f}"[:-3])
    staged.rename(final)
    sync(final.parent)
    return final, complete


def verified(folder: Path) -> BackupManifest:
    """After every sha256 was compared. Raises ArtifactError."""
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder} is no backup: its {MANIFEST} cannot be read ({error})") from None
    if manifest.format > FORMAT:
        raise ArtifactError(f"{folder} has format {manifest.format}; this release reads {FORMAT}: upgrade SilkRec")
    for name, told in manifest.files.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != told.sha256:
            raise ArtifactError(f"{path} is missing or damaged (sha256 differs); take another backup")
    return manifest


def backups(root: Path) -> list[Path]:
    """Whole ones, oldest first."""
    return sorted(path.parent for path in root.glob(f"{PREFIX}*/{MANIFEST}"))
