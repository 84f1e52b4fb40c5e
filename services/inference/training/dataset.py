"""Users' events as sequences: the split, the windows of an epoch, and batches of equal lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from services.inference.model.batch import PackedBatch

Ints = npt.NDArray[np.int64]
Split = Literal["validation", "test"]


class EventColumns(Protocol):
    """What `FeatureReader.training_events()` gives: columns [n], sorted by user, occurred_at, event_seq."""

    @property
    def user(self) -> npt.NDArray[np.int32]: ...
    @property
    def item(self) -> npt.NDArray[np.int32]: ...
    @property
    def action(self) -> npt.NDArray[np.int8]: ...
    @property
    def time(self) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class Sequences:
    """Users' rows back to back; user u owns `start[u]:end[u]`, and row `end[u]` is the one held out (if `held[u]`)."""

    item: Ints
    action: Ints
    time: Ints
    start: Ints
    end: Ints
    held: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, events: EventColumns, split: Split) -> Sequences:
        """`test` holds out each user's last event, `validation` the one before it (and never shows the last).

        A user without an event left to learn from holds nothing out, and trains with what there is.
        """
        user = np.asarray(events.user, np.int64)
        if np.any(np.diff(user) < 0):
            raise ValueError("training events must be sorted by user")
        first = np.flatnonzero(np.r_[True, np.diff(user) > 0]) if len(user) else np.empty(0, np.int64)
        last = np.r_[first[1:], len(user)].astype(np.int64)
        hidden = 1 if split == "test" else 2
        held = last - first > hidden
        end = np.where(held, last - hidden, last)
        item, action, time = (np.asarray(column, np.int64) for column in (events.item, events.action, events.time))
        return cls(item, action, time, first.astype(np.int64), end, held)

    @property
    def rows(self) -> int:
        """Rows to learn from."""
        return int((self.end - self.start).sum())


@dataclass(frozen=True, slots=True)
class Windows:
    """W training sequences: rows `start:stop` are inputs; each predicts the item after it, the last one included."""

    start: Ints
    stop: Ints
    opens: npt.NDArray[np.bool_]
    """[W]: the window begins at its user's first event, so that event is what the cold vector should predict."""

    def take(self, index: Ints) -> Windows:
        return Windows(self.start[index], self.stop[index], self.opens[index])


def epoch_windows(data: Sequences, max_history: int, rng: np.random.Generator) -> Windows:
    """Cuts users longer than `max_history` at a random phase, so that a row is seen in many contexts."""
    starts, stops, opens = [], [], []
    for begin, end in zip(data.start.tolist(), data.end.tolist(), strict=True):
        stop = end - 1  # the last row has nothing to predict
        cut = begin
        while cut < stop:
            width = max_history
            if cut == begin and stop - begin > max_history:
                width = int(rng.integers(max_history // 4, max_history + 1))
            upto = min(stop, cut + width)
            starts.append(cut)
            stops.append(upto)
            opens.append(cut == begin)
            cut = upto
    return Windows(np.array(starts, np.int64), np.array(stops, np.int64), np.array(opens, np.bool_))


def length_buckets(windows: Windows, budget: int, rng: np.random.Generator) -> Iterator[Windows]:
    """Batches of about `budget` rows whose windows have nearly equal lengths; order of batches and ties random."""
    length = windows.stop - windows.start
    order = np.lexsort((rng.random(len(length)), length))
    groups: list[Ints] = []
    begin = 0
    while begin < len(order):
        stop = begin + 1
        # The rectangle that padding would fill decides, so that a batch costs the same whatever its lengths.
        while stop < len(order) and (stop + 1 - begin) * int(length[order[stop]]) <= budget:
            stop += 1
        groups.append(order[begin:stop])
        begin = stop
    for number in rng.permutation(len(groups)).tolist():
        yield windows.take(groups[number])


def ranges(start: Ints, stop: Ints) -> Ints:
    """Concatenated aranges start[i]:stop[i]."""
    length = stop - start
    offset = np.cumsum(length) - length
    return np.repeat(start - offset, length) + np.arange(int(length.sum()))


def pack(data: Sequences, windows: Windows, device: torch.device) -> tuple[PackedBatch, Ints]:
    """The windows as a batch without candidates, and the event row of each packed row [T]."""
    rows = ranges(windows.start, windows.stop)
    offset = np.r_[0, np.cumsum(windows.stop - windows.start)]
    count = len(windows.start)
    none = torch.zeros(0, dtype=torch.int64)
    batch = PackedBatch(
        torch.from_numpy(data.item[rows]),
        torch.from_numpy(data.action[rows]),
        torch.from_numpy(data.time[rows]),
        torch.from_numpy(offset),
        none,
        torch.zeros(count + 1, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int64),
    )
    return batch.to(device), rows
