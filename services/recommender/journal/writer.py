"""The writer thread: takes whatever waits in its bounded queue, one write(2) for all of it, then tells the requests.

Off the event loop because write(2) may block for long while the kernel writes back or a disk is full. One thread hop
costs 0.05 to 0.2 ms; an fsync a record would cost milliseconds, and protects only against a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.recommender.journal.segment import SUFFIX, Place, SegmentWriter, frame
from shared.observability.logging import get_logger

_log = get_logger(__name__)
QUEUE_RECORDS = 4096
BATCH_RECORDS = 512
SEGMENT_BYTES = 8 * 1024 * 1024
FSYNC_S = 1.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    recommendation_id: str
    framed: bytes
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[bool]


class JournalWriter:
    """`submit` from an event loop; everything else happens in the one thread. `on_written` is called there.

    `lock` is held from before a record can be read from the file until `on_written` has returned, so that a drain
    that takes it knows of every record it has read.
    """

    def __init__(self, folder: Path, on_written: Callable[[Sequence[tuple[str, Place]]], None]) -> None:
        self._folder = folder
        self._on_written = on_written
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(QUEUE_RECORDS)
        self._segment: SegmentWriter | None = None
        self._number = max((int(path.stem) for path in folder.glob(f"*{SUFFIX}")), default=0)
        self._unsynced_since: float | None = None
        self._failing = False
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, recommendation_id: str, payload: bytes) -> asyncio.Future[bool] | None:
        """A future that becomes True once the kernel has the record, False when the disk refused it. None: the
        queue is full. Raises ValueError for a record too large to keep."""
        framed = frame(payload)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        try:
            self._queue.put_nowait(_Waiting(recommendation_id, framed, loop, done))
        except queue.Full:
            return None
        return done

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, syncs and ends."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._take()
            if batch:
                self._write(batch)
            self._sync_when_due(force=ended)
        if self._segment is not None:
            self._segment.close()

    def _take(self) -> tuple[list[_Waiting], bool]:
        """`(what waits, whether this was the end)`; waits at most until the next fsync is due."""
        try:
            first = self._queue.get(timeout=FSYNC_S if self._unsynced_since is not None else None)
        except queue.Empty:
            return [], False
        batch: list[_Waiting] = []
        entry = first
        while entry is not None:
            batch.append(entry)
            if len(batch) == BATCH_RECORDS:
                return batch, False
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _write(self, batch: Sequence[_Waiting]) -> None:
        try:
            with self.lock:
                self._append(batch)
        except OSError as error:
            if not self._failing:
                _log.error("the journal cannot write; slates go unrecorded", folder=str(self._folder), exc_info=error)
            self._failing = True
            _tell(batch, written=False)
            return
        self._failing = False
        if self._unsynced_since is None:
            self._unsynced_since = time.monotonic()
        _tell(batch, written=True)

    def _append(self, batch: Sequence[_Waiting]) -> None:
        frames = b"".join(entry.framed for entry in batch)
        segment = self._segment_for(len(frames))
        offset = segment.append(frames)
        places = []
        for entry in batch:
            end = offset + len(entry.framed)
            places.append((entry.recommendation_id, Place(segment.path, offset, end)))
            offset = end
        self._on_written(places)

    def _segment_for(self, size: int) -> SegmentWriter:
        segment = self._segment
        if segment is not None and segment.size + size <= SEGMENT_BYTES:
            return segment
        if segment is not None:
            self._segment = None
            segment.sync()
            segment.close()
        self._number += 1
        self._segment = SegmentWriter(self._folder / f"{self._number:010d}{SUFFIX}")
        return self._segment

    def _sync_when_due(self, *, force: bool) -> None:
        since = self._unsynced_since
        if since is None or self._segment is None or (not force and time.monotonic() - since < FSYNC_S):
            return
        try:
            self._segment.sync()
        except OSError as error:
            _log.error("the journal cannot sync", folder=str(self._folder), exc_info=error)
        self._unsynced_since = None


def _tell(batch: Sequence[_Waiting], *, written: bool) -> None:
    """One wake-up an event loop, not one a record."""
    loops = {entry.loop for entry in batch}
    for loop in loops:
        futures = [entry.done for entry in batch if entry.loop is loop]
        # A closed loop has nobody waiting any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, futures, written)


def _resolve(futures: Sequence[asyncio.Future[bool]], written: bool) -> None:
    for future in futures:
        if not future.done():
            future.set_result(written)
