"""Keeps a lease while its chunk is worked on, and says when it is lost."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from types import TracebackType

from services.recommender.jobs.leases import LeaseLost
from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger

_log = get_logger(__name__)


class Heart:
    """A thread for the length of one chunk; `renew` blocks and raises LeaseLost. A database that is away loses nothing
    by itself: whether the lease still holds is asked again, and the commit asks last."""

    def __init__(self, renew: Callable[[], None], every_s: float) -> None:
        self._renew = renew
        self._every_s = every_s
        self._stop = threading.Event()
        self._lost = threading.Event()
        begun = contextvars.copy_context()  # what it logs has the ids of the chunk
        self._thread = threading.Thread(target=begun.run, args=(self._beat,), name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._renew()
            except LeaseLost:
                self._lost.set()
                return
            except DatabaseUnavailable as error:
                _log.warning("a lease could not be renewed", cause=error.detail)
            except Exception as error:  # noqa: BLE001  (without a beat the chunk would be taken away unseen)
                _log.error("the renewal of a lease failed", exc_info=error)
                self._lost.set()
                return
