"""How many users a chunk gets: as many as were done in the target's seconds lately, and fewer where one fails. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# A chunk that fits the target by half as much again is left alone: making two of it costs a transaction.
TOO_SLOW = 2.0
# Two leases ended without a result: whatever it is, halves tell where it lies, and one bad user parks alone.
HALVE_AFTER = 2
# While many chunks fail it is no single user's fault, and thousands of halves would hide that.
HALVE_WHILE_FAILING = 64


@dataclass(frozen=True, slots=True)
class ChunkSizing:
    """`target_s` is how long a chunk should take; `first` users while nothing was measured."""

    target_s: float
    least: int
    most: int
    first: int

    def users(self, users_per_s: float | None) -> int:
        if users_per_s is None:
            return self.first
        return max(self.least, min(self.most, round(users_per_s * self.target_s)))

    def keep(self, users: int, attempts: int, users_per_s: float | None, failing: int) -> int:
        """Of a chunk's `users`, how many stay in it; the rest becomes a chunk of its own. `attempts` leases of it
        ended without a result; `failing` chunks of the job are in that state."""
        if users > 1 and attempts >= HALVE_AFTER and failing < HALVE_WHILE_FAILING:
            return (users + 1) // 2
        fit = self.users(users_per_s)
        if users_per_s is not None and users > TOO_SLOW * fit:
            return fit
        return users
