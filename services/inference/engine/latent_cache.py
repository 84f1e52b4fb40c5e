"""Whose history lies in which pages: least recently used users move to the host tier, then out.

An entry is trusted only as far as its rolling digests equal those of the history that was sent: the longest verified
prefix is kept, the rest computed anew. Everything here runs on the device thread, between two passes; tensors are moved
through a `Mover`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from services.inference.engine.counters import CacheCounters
from services.inference.engine.digest import UInt64
from services.inference.engine.pages import PagePool
from shared.errors import SilkrecError

DEVICE, HOST = "device", "host"


class CacheFull(SilkrecError):
    """The requests of one pass need more pages than there are; fewer requests may fit."""

    code = "latent_cache_full"


class Mover(Protocol):
    """Copies whole pages with their states. A source may be written again at once: whatever follows on the device
    follows these copies."""

    def demote(self, device: list[int], host: list[int]) -> None: ...

    def promote(self, host: list[int], device: list[int]) -> None: ...


@dataclass(slots=True, eq=False)
class Entry:
    """`digest` [rows]. The state at the first page is the one after row `rows`. `turn`: the last pass that used it;
    `builder`: the request of that pass that finished the entry's last row, None when it was there before."""

    pages: list[int]
    digest: UInt64
    tier: str = DEVICE
    pinned_until: float = 0.0
    turn: int = -1
    builder: int | None = None
    encoded: bool = False
    """Asked for by `encode` last: the `rank` that follows is the same slate's second trip, and what it finds is no hit.
    Counted, half of all rows would be found in a cache that holds nobody until the next slate."""
    is_passing: bool = False
    """Nobody but a job asked for it yet: the first to go when room is needed, and gone once it was ranked."""

    @property
    def rows(self) -> int:
        return len(self.digest)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request's history of `length` rows lies. Rows from `first` on are computed, those from `write_from` on
    also written. `builder`: the request of the same pass that gives the state when no row is computed here."""

    pages: list[int]
    first: int
    write_from: int
    length: int
    builder: int | None

    @property
    def cached(self) -> int:
        return self.first


@dataclass(slots=True)
class LatentCache:
    """`pool` and `host` count pages of `page_rows` rows. `enabled` False: every history is built for its pass alone."""

    pool: PagePool
    host: PagePool
    page_rows: int
    mover: Mover
    counters: CacheCounters
    enabled: bool = True
    _entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    _turn: int = 0
    _scratch: list[int] = field(default_factory=list)
    _ranked: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self) -> None:
        """A new pass."""
        self._turn += 1

    def place(
        self,
        user_key: str,
        digest: UInt64,
        request: int,
        now: float,
        pin_until: float,
        *,
        is_passing: bool = False,
        ranks: bool = False,
    ) -> Placement:
        """`request`: its number in this pass. `is_passing`: of a job, which must not cost online users their places: a
        million users pass by, each twice within a second. Raises CacheFull; the pass must then be abandoned with
        `abort`."""
        length = len(digest)
        if length == 0:
            return Placement([], 0, 0, 0, None)
        if not user_key or not self.enabled:
            return self._alone(length, now)
        entry = self._entries.get(user_key)
        prefix = 0 if entry is None else _common(entry.digest, digest)
        if is_passing:
            pin_until = 0.0
            if ranks:
                self._ranked.append(user_key)
        if entry is None:
            entry = Entry([], digest[:0], encoded=not ranks, is_passing=is_passing)
            return self._build(user_key, entry, digest, request, now, pin_until)
        busy = entry.turn == self._turn
        if prefix < min(entry.rows, length):
            self.counters.stale_rejects += 1
            if busy:  # another request of this pass reads what would be overwritten
                return self._alone(length, now)
        if not is_passing:
            entry.is_passing = False
            self._entries.move_to_end(user_key)
        self._count_hits(entry, prefix, ranks=ranks)
        self._bring_up(entry, now)
        entry.pinned_until = max(entry.pinned_until, pin_until)
        if prefix < length:
            self._truncate(entry, prefix)
            return self._build(user_key, entry, digest, request, now, pin_until)
        return self._reread(entry, length)

    def finish(self) -> None:
        """The pass is done; what was built for it alone, or for a job that has its scores now, is free again."""
        self.pool.give(self._scratch)
        self._scratch = []
        for key in self._ranked:
            entry = self._entries.get(key)
            if entry is not None and entry.is_passing:
                self._drop(key)
        self._ranked = []

    def abort(self) -> None:
        """The pass failed: whatever it touched may hold half of something."""
        self.finish()
        for key in [key for key, entry in self._entries.items() if entry.turn == self._turn]:
            self._drop(key)

    def cached_rows(self, user_key: str) -> int:
        """A guess for the scheduler, from any thread: nothing is verified."""
        entry = self._entries.get(user_key)
        return 0 if entry is None else entry.rows

    def forget(self, user_key: str) -> int:
        """Rows dropped."""
        entry = self._entries.get(user_key)
        return 0 if entry is None else self._drop(user_key)

    def clear(self) -> int:
        """Users dropped."""
        keys = list(self._entries)
        for key in keys:
            self._drop(key)
        return len(keys)

    def reset(self) -> None:
        """Forgets everything, pages that nobody owns any more included."""
        self._entries.clear()
        self._scratch, self._ranked = [], []
        self.pool, self.host = PagePool(self.pool.total), PagePool(self.host.total)

    def check_integrity(self) -> list[str]:
        """What is wrong, in words; empty when every page has exactly one owner and entries are as long as they say."""
        wrong = []
        for tier, pool in ((DEVICE, self.pool), (HOST, self.host)):
            owned = [page for entry in self._entries.values() if entry.tier == tier for page in entry.pages]
            owned += self._scratch if tier == DEVICE else []
            everything = sorted(owned + pool.free_pages())
            if everything != list(range(pool.total)):
                wrong.append(f"{tier}: {len(owned)} pages owned and {pool.free} free, of {pool.total}")
        odd = [e for e in self._entries.values() if len(e.pages) != self._pages_for(e.rows) or e.rows == 0]
        return wrong + [f"an entry of {entry.rows} rows has {len(entry.pages)} pages" for entry in odd]

    def _alone(self, length: int, now: float) -> Placement:
        pages = self._take(self._pages_for(length), now)
        self._scratch += pages
        return Placement(pages, 0, 0, length, None)

    def _build(
        self, user_key: str, entry: Entry, digest: UInt64, request: int, now: float, pin_until: float
    ) -> Placement:
        """Rows after the entry's own are computed and kept."""
        first, length = entry.rows, len(digest)
        entry.turn = self._turn  # before pages are taken: it must not be evicted for itself
        if user_key not in self._entries:
            self._entries[user_key] = entry
            if entry.is_passing:
                self._entries.move_to_end(user_key, last=False)
        entry.pages += self._take(self._pages_for(length) - len(entry.pages), now)
        entry.digest = digest.copy()
        entry.builder = request
        entry.pinned_until = max(entry.pinned_until, pin_until)
        self.counters.built_rows += length - first
        return Placement(entry.pages[: self._pages_for(length)], first, first, length, None)

    def _reread(self, entry: Entry, length: int) -> Placement:
        """All rows are there. Of a history shorter than the entry the last row runs again, for its state."""
        if entry.turn != self._turn:
            entry.turn, entry.builder = self._turn, None
        pages = entry.pages[: self._pages_for(length)]
        if length < entry.rows:
            return Placement(pages, length - 1, length, length, None)
        return Placement(pages, length, length, length, entry.builder)

    def _truncate(self, entry: Entry, rows: int) -> None:
        keep = self._pages_for(rows)
        self.pool.give(entry.pages[keep:])
        del entry.pages[keep:]
        entry.digest = entry.digest[:rows]

    def _bring_up(self, entry: Entry, now: float) -> None:
        if entry.tier == DEVICE:
            return
        entry.turn, entry.builder = self._turn, None
        pages = self._take(len(entry.pages), now)
        self.mover.promote(entry.pages, pages)
        self.host.give(entry.pages)
        entry.pages, entry.tier = pages, DEVICE

    def _take(self, count: int, now: float) -> list[int]:
        """Raises CacheFull."""
        pages = self.pool.take(count)
        if pages is None:
            self._make_room(count, now)
            pages = self.pool.take(count)
        if pages is None:
            raise CacheFull(f"{count} pages are needed and {self.pool.free} of {self.pool.total} can be had")
        return pages

    def _make_room(self, count: int, now: float) -> None:
        """Oldest first; users whose deadline still runs only when nobody else is left."""
        for spare_pinned in (True, False):
            for key, entry in list(self._entries.items()):
                if self.pool.free >= count:
                    return
                pinned = spare_pinned and entry.pinned_until > now
                if entry.tier == DEVICE and entry.turn != self._turn and not pinned:
                    self._evict(key, entry)

    def _evict(self, key: str, entry: Entry) -> None:
        self.counters.evictions += 1
        pages = None if entry.is_passing else self._host_pages(len(entry.pages))
        if pages is None:
            self._drop(key)
            return
        self.mover.demote(entry.pages, pages)
        self.pool.give(entry.pages)
        entry.pages, entry.tier = pages, HOST

    def _host_pages(self, count: int) -> list[int] | None:
        if count > self.host.total:
            return None
        for key, entry in list(self._entries.items()):
            if self.host.free >= count:
                break
            if entry.tier == HOST and entry.turn != self._turn:
                self.counters.host_evictions += 1
                self._drop(key)
        return self.host.take(count)

    def _drop(self, key: str) -> int:
        entry = self._entries.pop(key)
        (self.pool if entry.tier == DEVICE else self.host).give(entry.pages)
        return entry.rows

    def _count_hits(self, entry: Entry, rows: int, *, ranks: bool) -> None:
        second_trip, entry.encoded = ranks and entry.encoded, not ranks
        if second_trip:
            return
        if entry.tier == DEVICE:
            self.counters.device_hit_rows += rows
        else:
            self.counters.host_hit_rows += rows

    def _pages_for(self, rows: int) -> int:
        return -(-rows // self.page_rows)


def _common(one: UInt64, other: UInt64) -> int:
    """Rows that both histories begin with. A digest stands for its whole prefix, so usually one comparison tells."""
    shorter = min(len(one), len(other))
    if shorter == 0 or one[shorter - 1] == other[shorter - 1]:
        return shorter
    return int(np.argmax(one[:shorter] != other[:shorter]))
