"""From a job's users to chunks: page by page, each page one transaction with the cursor behind it.

Memory is a page, whatever the job: a million users are 500 pages of 2,000. What a killed planner had not committed,
the next one reads again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, update

from services.recommender.jobs import asks as packing
from services.recommender.jobs.leases import ChunkKind
from services.recommender.jobs.seen import SeenUsers
from services.recommender.jobs.store import chunks as chunk_rows
from services.recommender.jobs.store import jobs as job_rows
from services.recommender.jobs.store.chunks import Lease
from services.recommender.jobs.store.clock import Clock, database_clock
from services.recommender.jobs.store.rules import Rules
from services.recommender.jobs.users import Cursor, Page, Users
from services.recommender.jobs.work import SlateAsk
from shared.storage.database import Database
from shared.storage.tables import jobs

# Lists of 500 ids of 256 bytes are 128 KB a user; a chunk's row stays far below MySQL's packet of 16 MB.
CHUNK_BYTES = 4 << 20


def cut(asks: Sequence[SlateAsk], size: int, most_bytes: int = CHUNK_BYTES) -> Iterator[Sequence[SlateAsk]]:
    """Pieces of `size` users, fewer where their lists are long."""
    start, weight = 0, 0
    for place, ask in enumerate(asks):
        own = len(ask.user_key) + sum(map(len, ask.item_ids))
        if place > start and (place - start >= size or weight + own > most_bytes):
            yield asks[start:place]
            start, weight = place, 0
        weight += own
    if start < len(asks):
        yield asks[start:]


def gathered(pages: Iterator[Page], least: int, most_pages: int = 50) -> Iterator[Page]:
    """Pages joined until they hold `least` users: a segment that takes one user in a hundred would otherwise make
    chunks of twenty."""
    asks: list[SlateAsk] = []
    refused: list[str] = []
    joined, last = 0, None
    for page in pages:
        asks, refused, joined, last = [*asks, *page.asks], [*refused, *page.refused], joined + 1, page.cursor
        if len(asks) >= least or joined >= most_pages:
            yield Page(asks, last, refused)
            asks, refused, joined, last = [], [], 0, None
    if last is not None:
        yield Page(asks, last, refused)


@dataclass
class Planner:
    """One turn at a job's plan. `plan` returns whether everything is planned; a turn ends after `turn_s`, so that the
    task's time limit never meets a long plan."""

    database: Database
    lease: Lease
    users: Users
    rules: Rules
    turn_s: float
    stopped: Callable[[], bool] = lambda: False
    clock: Clock = database_clock
    monotonic: Callable[[], float] = time.monotonic

    def plan(self, cursor: Cursor | None) -> bool:
        """Raises LeaseLost, DatabaseUnavailable, ValidationFailed for a file that cannot be read."""
        until = self.monotonic() + self.turn_s
        with SeenUsers() as seen:
            if cursor is not None and not self.users.unique:
                self._remember(seen, cursor)
            for page in gathered(self.users.pages(cursor), self.rules.sizing.most):
                fresh = page.asks if self.users.unique else seen.new(page.asks)
                self._commit(Page(fresh, page.cursor, page.refused))
                if self.stopped() or self.monotonic() > until:
                    return False
        self.database.transact(self._planned)
        return True

    def _remember(self, seen: SeenUsers, cursor: Cursor) -> None:
        """What earlier turns planned, so that a user who comes again is known."""
        for page in self.users.pages(None):
            seen.new(page.asks)
            if page.cursor == cursor:
                return

    def _commit(self, page: Page) -> None:
        def write(connection: Connection) -> None:
            chunk_rows.renew(connection, self.lease, self.rules, self.clock)
            measured = chunk_rows.users_per_s(connection, self.lease.job_id) or chunk_rows.users_per_s(connection, None)
            pieces = list(cut(page.asks, self.rules.sizing.users(measured)))
            first = chunk_rows.next_number(connection, self.lease.job_id, len(pieces)) if pieces else 0
            rows = [
                (first + place, ChunkKind.WORK, len(piece), packing.pack(piece)) for place, piece in enumerate(pieces)
            ]
            job_rows.add_chunks(connection, self.lease.job_id, rows, self.clock(connection))
            if page.refused:
                number = chunk_rows.next_number(connection, self.lease.job_id)
                job_rows.add_refused(connection, self.lease.job_id, number, page.refused, self.clock(connection))
            mine = jobs.c.job_id == self.lease.job_id
            connection.execute(update(jobs).where(mine).values(cursor=dict(page.cursor)))

        self.database.transact(write)

    def _planned(self, connection: Connection) -> None:
        chunk_rows.close(connection, self.lease, self.clock)
        connection.execute(update(jobs).where(jobs.c.job_id == self.lease.job_id).values(planned=True))
