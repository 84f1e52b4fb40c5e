"""The journal as the rest of the recommender sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from services.recommender.journal import folders, losses
from services.recommender.journal.database import load_slate
from services.recommender.journal.drain import Drainer
from services.recommender.journal.folders import HeldFolder
from services.recommender.journal.record import ServedSlate, decode, encode
from services.recommender.journal.segment import Place, read_one
from services.recommender.journal.writer import JournalWriter
from services.recommender.metrics import JournalMetrics
from shared.errors import ConfigurationError, DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.database import Database

_log = get_logger(__name__)
IDLE_S = 0.25
ADOPT_S = 10.0
RETRY_S = 1.0
FOLDER = "journal"


class Journal:
    """One a process. `append` before an answer leaves; `drain` and `adopt` are loops for two owned tasks.

    At most `max_slates` wait for the database; beyond that new ones are counted as lost (`full`), not written.
    """

    def __init__(
        self,
        *,
        state: Path,
        process: str,
        database: Database,
        metrics: JournalMetrics,
        max_slates: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Makes this process's folder. Raises ConfigurationError when the state folder cannot be written."""
        self._root = state / FOLDER
        try:
            self._folder = folders.create(self._root, process)
        except OSError as error:
            raise ConfigurationError(f"the journal cannot be made in {self._root}: {error.strerror}") from None
        self._database = database
        self._metrics = metrics
        self._max_slates = max_slates
        self._sleep = sleep
        self._places: dict[str, Place] = {}
        self._writer = JournalWriter(self._folder.path, self._written)
        self._drainer = Drainer(database, metrics, self._forget)
        self._losses: losses.Losses = Counter()
        self._full = False
        self.status = "ok"

    @property
    def waiting(self) -> int:
        """Slates of this process that the database does not hold yet."""
        return len(self._places)

    async def append(self, slate: ServedSlate, *, timeout_s: float) -> bool:
        """True once the kernel holds the record. False after `timeout_s` (it may still be written), or when it was
        refused; either way the answer may leave, and the loss is counted."""
        if len(self._places) >= self._max_slates:
            return self._lost("full", slate)
        if not self._writer.alive:
            return self._lost("writer_died", slate)
        try:
            done = self._writer.submit(slate.recommendation_id, encode(slate))
        except (TypeError, ValueError) as error:
            _log.error("a slate cannot be written down", exc_info=error)
            return self._lost("unwritable", slate)
        if done is None:
            return self._lost("queue_full", slate)
        try:
            async with asyncio.timeout(timeout_s):
                written = await done
        except TimeoutError:
            self._metrics.late.inc()
            return False
        if not written:
            return self._lost("disk", slate)
        self._full = False
        self._metrics.written.inc()
        return True

    async def find(self, recommendation_id: str) -> ServedSlate | None:
        """From what still waits here, else from the database. Raises DatabaseUnavailable."""
        place = self._places.get(recommendation_id)
        if place is not None:
            payload = await asyncio.to_thread(read_one, place)
            if payload is not None:
                return decode(payload)
        return await self._database.run(self._load, recommendation_id)

    async def drain(self) -> None:
        """For ever: what this process wrote, into the database."""
        while True:
            if not self._writer.alive:
                _log.critical("the journal's writer thread died and is started again")
                self._writer = JournalWriter(self._folder.path, self._written)
            drained = await self.drain_waiting()
            self._metrics.waiting.set(len(self._places))
            await self._sleep(IDLE_S if drained else RETRY_S)

    async def drain_waiting(self) -> bool:
        """Everything that waits now; False when the database or the disk did not take all of it."""
        while handled := await self._attempt(self._drain_own):
            self._metrics.waiting.set(len(self._places))
        return handled is not None and await self._tell_losses()

    async def adopt(self) -> None:
        """For ever: what dead processes left behind, into the database."""
        while True:
            await self.adopt_all()
            await self._sleep(ADOPT_S)

    async def adopt_all(self) -> None:
        """Every folder whose process is dead; one that the database cannot take now is left for the next time, and
        segments that this release cannot read for a newer one."""
        passed: set[Path] = set()
        while (found := await asyncio.to_thread(folders.adopt, self._root, passed)) is not None:
            left: int | None = None
            try:
                while left := await self._attempt(self._drain_folder, found):
                    pass
            finally:
                gone = found.release(remove=left == 0)
            if left is None:
                return
            passed.add(found.path)
            if gone:
                _log.info("adopted the journal of a dead process", folder=found.path.name)
        self._metrics.kept.set(await asyncio.to_thread(self._drainer.still_kept))

    async def close(self, *, drain_s: float = 2.0) -> None:
        """Writes what waits, and drains for at most `drain_s`; what is left is adopted by whoever starts next."""
        await asyncio.to_thread(self._writer.close)
        left: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while left := await self._attempt(self._drain_folder, self._folder):
                    pass
                await self._tell_losses()
        self._folder.release(remove=left == 0)

    def _written(self, places: Sequence[tuple[str, Place]]) -> None:
        self._places.update(places)

    def _forget(self, recommendation_ids: Sequence[str]) -> None:
        with self._writer.lock:
            for recommendation_id in recommendation_ids:
                self._places.pop(recommendation_id, None)

    def _lost(self, cause: str, slate: ServedSlate) -> bool:
        self._metrics.lost.labels(cause).inc()
        losses.count(self._losses, slate)
        if not self._full:
            _log.error("served slates go unrecorded", cause=cause, waiting=len(self._places))
        self._full = True
        return False

    async def _tell_losses(self) -> bool:
        told, self._losses = self._losses, Counter()
        if not told or await self._attempt(self._put_losses, told) is not None:
            return True
        self._losses.update(told)
        return False

    async def _attempt(self, work: Callable[..., int], *arguments: object) -> int | None:
        """None when the database or the disk failed; the loop goes on after a pause."""
        try:
            handled = await self._database.run(work, *arguments)
        except (DatabaseUnavailable, OSError) as error:
            cause = error.code if isinstance(error, DatabaseUnavailable) else "disk"
            if self.status == "ok":
                _log.warning("the journal waits", cause=cause, waiting=len(self._places))
            self.status = f"waits for the {'database' if cause != 'disk' else 'disk'}; {len(self._places)} slates"
            self._metrics.drain_failures.labels(cause).inc()
            return None
        self.status = "ok"
        return handled

    def _put_losses(self, told: losses.Losses) -> int:
        self._database.transact(lambda connection: losses.put_losses(connection, told))
        return len(told)

    def _drain_own(self) -> int:
        segments = self._folder.segments()
        return self._drainer.drain(segments, growing=segments[-1] if segments else None)

    def _drain_folder(self, folder: HeldFolder) -> int:
        return self._drainer.drain(folder.segments(), growing=None)

    def _load(self, recommendation_id: str) -> ServedSlate | None:
        with self._database.read() as connection:
            return load_slate(connection, recommendation_id)
