"""Batch slates from the database, for requests that ask it anyway because Redis is away or has lost the user.

A request whose history and profile Redis holds never asks the database for a slate: that would cost everybody without
one a second round trip. So Redis is the reader's way, and this is what is left of a slate when Redis is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from services.recommender.components.stored import parse_batch_slate_key
from shared.storage.tables import batch_slates


@dataclass(frozen=True, slots=True)
class StoredSlates:
    """`services.features.reader.StoredExtras`. One look by primary key, beside those for history and profile."""

    ttl_s: int
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000

    def read(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The newest of the release and scene that each key names, no older than Redis would have kept it."""
        found: dict[str, bytes] = {}
        table = batch_slates.c
        for key in keys:
            named = parse_batch_slate_key(key)
            if named is None:
                continue
            release, scene, user_key = named
            mine = (table.user_key == user_key, table.scene == scene, table.release == release)
            young = table.made_at_us >= self.now_us() - self.ttl_s * 1_000_000
            newest = select(table.slate).where(*mine, young).order_by(table.made_at_us.desc()).limit(1)
            slate = connection.scalar(newest)
            if slate is not None:
                found[key] = slate
        return found
