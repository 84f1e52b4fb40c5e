"""What one chunk made: the slates of those who got one, the reasons of those who did not, and the checksum."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.recommender.components.stored import BatchSlate, pack_batch_slate
from services.recommender.jobs.work import UserSlate
from shared.contracts.manifest import Release

DAY_US = 86_400_000_000
REASON_MAX = 300
_NOTE_CAUSES = 5


@dataclass(frozen=True, slots=True)
class Made:
    """`release`: that of every slate here; None before one is active."""

    slates: Sequence[UserSlate]
    failures: Sequence[tuple[str, str]]
    release: Release | None
    scene: str
    made_at_us: int

    @classmethod
    def of(cls, slates: Sequence[UserSlate], *, release: Release | None, scene: str, made_at_us: int) -> Made:
        good = [slate for slate in slates if slate.error is None]
        failures = [(slate.user_key, slate.error[:REASON_MAX]) for slate in slates if slate.error is not None]
        return cls(good, failures, release, scene, made_at_us)

    @property
    def release_name(self) -> str:
        return "" if self.release is None else self.release.release

    def packed(self, slate: UserSlate) -> bytes:
        return pack_batch_slate(BatchSlate(slate.item_index, slate.scores, self.made_at_us // 1_000_000))

    def rows(self) -> list[dict[str, Any]]:
        """Of batch_slates, without job and chunk."""
        common = {
            "scene": self.scene,
            "release": self.release_name,
            "model_version": None if self.release is None else self.release.model_version,
            "index_version": None if self.release is None else self.release.index_version,
            "made_at_us": self.made_at_us,
            "made_day": self.made_at_us // DAY_US,
        }
        return [{**common, "user_key": slate.user_key, "slate": self.packed(slate)} for slate in self.slates]

    def checksum(self) -> str:
        """Sum over users of sha256(user_key, items), modulo 2^256: the same however users fell into chunks, and found
        again from what was written."""
        total = sum(checksum_of(slate.user_key, slate.item_index.astype("<i4").tobytes()) for slate in self.slates)
        return f"{total % (1 << 256):064x}"

    def note(self) -> str | None:
        """Which slates gave something up, for the chunk's row."""
        causes = Counter(cause for slate in self.slates for cause in slate.degraded)
        if not causes:
            return None
        named = ", ".join(f"{cause} ({count})" for cause, count in causes.most_common(_NOTE_CAUSES))
        return f"slates gave up: {named}"


def checksum_of(user_key: str, items: bytes) -> int:
    """`items`: little-endian int32 item_index, best first."""
    return int.from_bytes(hashlib.sha256(user_key.encode() + b"\0" + items).digest())
