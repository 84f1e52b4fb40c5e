"""What the active index, and those active before it, are known to hold.

An index holds the items that its `item_index.npy` lists. Where its folder cannot be read from this host, the manifest
in the registry tells less: an index made from a model has a vector of every item that was known at its
catalogue_version; of all else nothing is claimed.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import numpy as np
from pydantic import ValidationError
from sqlalchemy import Connection, select

from services.features.items.store import StoredItem
from shared.contracts.history import Int32
from shared.contracts.manifest import IndexManifest
from shared.errors import ArtifactError
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.tables import models

ROWS_FILE = "item_index.npy"
# How far back "since which index version" is followed.
DEPLOYMENTS_READ = 16
VERSIONS_KEPT = 8


@dataclass(frozen=True, slots=True)
class IndexContent:
    """`rows [n]` int32, rising: the item_index of each; None when the folder cannot be read here. `manifest` None:
    the registry does not have it either."""

    version: str
    manifest: IndexManifest | None
    rows: Int32 | None

    def holds(self, found: Sequence[StoredItem]) -> list[bool | None]:
        """None where it cannot be told."""
        if self.rows is None:
            return [self._inferred(item) for item in found]
        if len(self.rows) == 0:
            return [False] * len(found)
        wanted = np.array([item.item_index for item in found], np.int32)
        place = np.searchsorted(self.rows, wanted).clip(max=len(self.rows) - 1)
        held: list[bool | None] = (self.rows[place] == wanted).tolist()
        return held

    def _inferred(self, item: StoredItem) -> bool | None:
        if self.manifest is None or self.manifest.model_version is None:
            return None
        return True if item.revision <= self.manifest.catalogue_version else None


@dataclass(frozen=True, slots=True)
class ActiveIndexes:
    """`versions`, the active one first, then those that served before it without a gap; each with its manifest as the
    registry has it. Empty: there is no active index. `promoted` False: there never was a release."""

    promoted: bool
    versions: tuple[tuple[str, IndexManifest | None], ...]


def read_active(connection: Connection) -> ActiveIndexes:
    history = deployments.history(connection, DEPLOYMENTS_READ)
    runs = (version for version, _ in groupby(one.release.index_version for one in history))
    versions = [version for version in takewhile(lambda version: version is not None, runs) if version][:VERSIONS_KEPT]
    if not versions:
        return ActiveIndexes(bool(history), ())
    rows = connection.execute(select(models.c.version, models.c.manifest).where(models.c.version.in_(versions)))
    registered = {row.version: _manifest(row.manifest) for row in rows}
    return ActiveIndexes(True, tuple((version, registered.get(version)) for version in versions))


class IndexContents:
    """Opens what an index holds, once a version. Thread-safe; reads files, so not for the event loop."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, IndexContent] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, version: str, registered: IndexManifest | None) -> IndexContent:
        """What cannot be read is tried again at the next call: the folder may still be on its way to this host."""
        with self._lock:
            kept = self._kept.get(version)
            if kept is not None:
                self._kept.move_to_end(version)
                return kept
            try:
                content = self._read(version)
            except ArtifactError:
                return IndexContent(version, registered, None)
            self._kept[version] = content
            while len(self._kept) > VERSIONS_KEPT:
                self._kept.popitem(last=False)
            return content

    def _read(self, version: str) -> IndexContent:
        manifest = self._store.manifest(IndexManifest, version)
        path = self._store.folder(IndexManifest, version) / ROWS_FILE
        try:
            packed = path.read_bytes()
            rows = np.load(io.BytesIO(packed))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None
        if hashlib.sha256(packed).hexdigest() != manifest.files.get(ROWS_FILE):
            raise ArtifactError(f"{path} is damaged (sha256 differs from its manifest)")
        return IndexContent(version, manifest, np.asarray(rows, np.int32))


def _manifest(tree: Any) -> IndexManifest | None:
    try:
        return IndexManifest.model_validate(tree)
    except ValidationError:
        return None
