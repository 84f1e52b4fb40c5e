"""Artifact folders: immutable, checksummed, published by one rename.

    <artifacts>/models/<version>/manifest.json …      <artifacts>/indexes/<version>/manifest.json …

A reader sees a folder whole or not at all; `open_folder` verifies every sha256 before anything is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from shared.contracts.manifest import MANIFEST_FORMAT, IndexManifest, Manifest, ModelManifest
from shared.errors import ArtifactError

M = TypeVar("M", ModelManifest, IndexManifest)
MANIFEST_NAME = "manifest.json"
_FOLDERS: dict[type[Manifest], str] = {ModelManifest: "models", IndexManifest: "indexes"}
_CHUNK = 1 << 20


def new_version(prefix: str) -> str:
    """Sorts by time, e.g. `m-20260131-120000-4f2a`."""
    return f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """To the disk: a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ArtifactStore:
    """`root` is the folder that `artifacts.url` names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: type[Manifest], version: str) -> Path:
        return self.root / _FOLDERS[kind] / version

    @contextlib.contextmanager
    def staging(self, kind: type[Manifest], version: str) -> Iterator[Path]:
        """An empty folder beside the final one; removed again unless `publish` moved it."""
        path = self.folder(kind, version).with_name(f".{version}.{secrets.token_hex(4)}")
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, staged: Path, manifest: M) -> M:
        """Checksums every file of `staged`, writes the manifest, syncs, renames. Returns it with `files` filled."""
        files = {p.name: sha256_of(p) for p in sorted(staged.iterdir()) if p.name != MANIFEST_NAME}
        complete = manifest.model_copy(update={"files": files})
        target = staged / MANIFEST_NAME
        target.write_text(complete.model_dump_json(indent=2) + "\n", "utf-8")
        for path in (*staged.iterdir(), staged):
            sync(path)
        final = self.folder(type(manifest), manifest.version)
        staged.rename(final)
        sync(final.parent)
        return complete

    def manifest(self, kind: type[M], version: str) -> M:
        """Raises ArtifactError when it is missing, damaged or of an unknown format."""
        path = self.folder(kind, version) / MANIFEST_NAME
        try:
            manifest = kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise ArtifactError(f"there is no {path}; `silkrec doctor` lists what exists") from None
        except (OSError, ValidationError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None
        if manifest.format > MANIFEST_FORMAT:
            raise ArtifactError(
                f"{path} has format {manifest.format}; this release reads up to {MANIFEST_FORMAT}: upgrade SilkRec"
            )
        return manifest

    def open_folder(self, kind: type[M], version: str) -> tuple[Path, M]:
        """The folder and its manifest after every file's sha256 was compared. Raises ArtifactError."""
        manifest = self.manifest(kind, version)
        folder = self.folder(kind, version)
        for name, expected in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; restore the folder or promote another release")
            if sha256_of(path) != expected:
                raise ArtifactError(
                    f"{path} is damaged (sha256 differs from its manifest); restore it or promote another release"
                )
        return folder, manifest

    def versions(self, kind: type[Manifest]) -> list[str]:
        """Published versions, oldest first."""
        root = self.root / _FOLDERS[kind]
        if not root.is_dir():
            return []
        return sorted(p.name for p in root.iterdir() if not p.name.startswith(".") and (p / MANIFEST_NAME).is_file())
