"""The path of a Unix socket, owned by one process at a time.

A killed process leaves its socket behind, and gRPC unlinks whatever lies there before it binds: without a lock a second
process would take the path of a living one. The kernel gives the lock back when its holder ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from shared.errors import ConfigurationError


class OwnedSocket:
    """`take` before binding, `release` after the listener is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def take(self) -> None:
        """Makes the folder, private to this user: whoever reaches the socket may ask anything. Removes a stale socket.
        Raises ConfigurationError when another process serves the path, or something else lies there."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.parent.chmod(0o700)
            self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{self.path.parent} cannot be used for the inference socket: {error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_stale()
        except BlockingIOError:
            self._unlock()
            raise ConfigurationError(
                f"another process serves {self.path}; stop it, or set SILKREC_STATE_DIR to another folder"
            ) from None
        except ConfigurationError:
            self._unlock()
            raise

    def release(self) -> None:
        """The socket goes, the lock's file stays: unlinking it would let two processes hold two locks."""
        if self._lock is None:
            return
        self.path.unlink(missing_ok=True)
        self._unlock()

    def _remove_stale(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise ConfigurationError(
                    f"{self.path} stands where the inference socket belongs and is no socket; move it away"
                )
            self.path.unlink()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
