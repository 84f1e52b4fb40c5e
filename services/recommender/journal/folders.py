"""One folder a process, held by a file lock: whoever can take the lock knows that its process is dead.

The kernel drops the lock when the process ends, however it ends. A folder gets its name only once it is locked, so
nobody can adopt one that is being made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from services.recommender.journal.segment import SUFFIX

LOCK = "lock"
_NEW = ".new-"
_FORGOTTEN_S = 3600.0


@dataclass(slots=True)
class HeldFolder:
    """A folder whose lock this process has. `release()` gives it up."""

    path: Path
    _lock: int

    def segments(self) -> list[Path]:
        """Oldest first: names are numbers of one width."""
        return sorted(self.path.glob(f"*{SUFFIX}"))

    def release(self, *, remove: bool) -> bool:
        """Whether it is gone: a folder that still holds anything, readable or not, is never removed."""
        try:
            gone = remove and all(one.name == LOCK for one in self.path.glob("*"))
            if gone:
                shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os.close(self._lock)
        return gone


def create(root: Path, process: str) -> HeldFolder:
    """A new folder of this process. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    name = f"{process}-{os.getpid()}-{secrets.token_hex(4)}"
    making = root / f"{_NEW}{name}"
    making.mkdir()
    lock = _take(making)
    if lock is None:
        raise OSError(f"{making} was locked by somebody else")
    final = root / name
    making.rename(final)
    return HeldFolder(final, lock)


def adopt(root: Path, passed: Collection[Path] = ()) -> HeldFolder | None:
    """A folder that a dead process left behind, if there is one but for those `passed`. Raises OSError."""
    _sweep(root)
    for path in sorted(root.iterdir()):
        if path in passed or path.name.startswith(".") or not (path / LOCK).exists():
            continue
        lock = _take(path)
        if lock is None:
            continue
        if path.is_dir():
            return HeldFolder(path, lock)
        os.close(lock)  # another process adopted and removed it between our looking and locking
    return None


def _take(path: Path) -> int | None:
    try:
        lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _sweep(root: Path) -> None:
    """Half-made folders of processes that died in `create`; they hold no record."""
    for path in root.glob(f"{_NEW}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(path, ignore_errors=True)
