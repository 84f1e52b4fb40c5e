"""Who asks and when, and what each simulated user likes. A function of the seed, so that nothing has to be stored and
users met in any order are the same users."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.recommender.experiments.refusals import refuse

TASTE_POWER = 3
"""A liking is a uniform number to this power: 0.25 on average, above 0.7 for one category in nine."""
NO_CATEGORY = 1 / (TASTE_POWER + 1)
"""The mean liking, for items without categories."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """`number` of the request from 0; `at_s` seconds after the begin."""

    number: int
    user_id: str
    at_s: float


def user_ids(count: int, seed: int) -> tuple[str, ...]:
    """With the seed in them: another seed's users have other tastes, so they must not be taken for the same people."""
    return tuple(f"sim-{seed}-{number}" for number in range(count))


def liking(seed: int, user_id: str, category: str) -> float:
    """From 0 to 1, fixed for ever."""
    return uniform(seed, "taste", user_id, category) ** TASTE_POWER


def uniform(seed: int, *names: str) -> float:
    """In [0, 1), by a hash: a generator would make a taste depend on which categories were met before."""
    text = "\x1f".join((str(seed), *names))  # a separator that no id may hold
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def arrivals(users: tuple[str, ...], requests: int, rate: float, seed: int) -> Iterator[Arrival]:
    """A Poisson process of `rate` requests a second; 0: all at once, as fast as they are taken. Some users come far
    more often than others (exponential activity), as real ones do: it is what makes users and not requests the unit.
    """
    if not users or requests < 0:
        raise refuse("users", f"are {len(users)} and requests {requests}; there must be somebody to ask")
    if rate < 0:
        raise refuse("rate", f"is {rate}; give requests a second, or 0 for as fast as they are answered")
    random = np.random.default_rng(seed)
    activity = random.exponential(size=len(users))
    chosen = random.choice(len(users), size=requests, p=activity / activity.sum())
    times = np.cumsum(random.exponential(1 / rate, size=requests)) if rate else np.zeros(requests)
    for number, (user, at_s) in enumerate(zip(chosen.tolist(), times.tolist(), strict=True)):
        yield Arrival(number, users[user], at_s)
