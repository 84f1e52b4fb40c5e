"""One policy's log of one campaign, as columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.refusals import refuse

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Policy(StrEnum):
    """Of the file; `BTS` is Bernoulli Thompson sampling, trained before the log began."""

    RANDOM = "random"
    BTS = "bts"


class Campaign(StrEnum):
    ALL = "all"
    MEN = "men"
    WOMEN = "women"


_COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")


@dataclass(frozen=True, slots=True)
class BanditLog:
    """All [rows]: `item` from 0, `place` in the recommendation from 0 (left, centre, right: the file counts from 1),
    `click` 0 or 1, `propensity` as the shop wrote it, `at_us` microseconds since 1970 UTC. A row is one slot that was
    seen by somebody; the file does not say which slots stood side by side, and holds no user ids."""

    item: Ints
    place: Ints
    click: Values
    propensity: Values
    at_us: Ints

    @property
    def click_rate(self) -> float:
        return float(self.click.mean())


def file_of(folder: Path, policy: Policy, campaign: Campaign) -> Path:
    return folder / policy / campaign / f"{campaign}.csv"


def read_log(folder: Path, policy: Policy, campaign: Campaign) -> BanditLog:
    """`folder` holds `random/` and `bts/`. Raises ValidationFailed when the file is not what the paper describes."""
    path = file_of(folder, policy, campaign)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise refuse("file", f"{path} lacks the columns {', '.join(missing)}; it is no Open Bandit log")
            cells = [[row[name] for name in _COLUMNS] for row in reader]
    except FileNotFoundError:
        raise refuse("folder", f"has no {path}; leave --folder out to download the sample") from None
    if not cells:
        raise refuse("file", f"{path} holds no rows")
    times, items, positions, clicks, propensities = zip(*cells, strict=True)
    try:
        return BanditLog(
            np.array([int(text) for text in items], np.int64),
            np.array([int(text) - 1 for text in positions], np.int64),
            np.array([float(text) for text in clicks], np.float64),
            np.array([float(text) for text in propensities], np.float64),
            np.array([_microseconds(text) for text in times], np.int64),
        )
    except (TypeError, ValueError) as error:
        raise refuse("file", f"{path} cannot be read: {error}") from None


def _microseconds(text: str) -> int:
    """Not `timestamp()`: doubles of 2019 are half a microsecond apart, enough to round to the neighbour."""
    at = datetime.fromisoformat(text).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (at.days * 86_400 + at.seconds) * 1_000_000 + at.microseconds
