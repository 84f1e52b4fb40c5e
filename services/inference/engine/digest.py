"""What a history is recognised by: a rolling digest a row, and where a long history's window begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_CHUNK_SHARE = 4


def row_hashes(item: npt.NDArray[np.integer], action: npt.NDArray[np.integer], time: npt.NDArray[np.integer]) -> UInt64:
    """[n] of rows [n]; every bit of a row reaches every bit (splitmix64's finaliser, Steele et al. 2014)."""
    mixed = _mix(time.astype(np.uint64) + _GOLDEN)
    both = (item.astype(np.uint64) << np.uint64(8)) | action.astype(np.uint8).astype(np.uint64)
    return _mix(mixed ^ both)


def digests(rows: UInt64, start: npt.NDArray[np.integer]) -> UInt64:
    """[T], for each row the digest of its history up to and with it. Histories lie at `start[b]:start[b+1]`.

    The sum of hashes that know their place: an edit, a swap or a removal changes every digest from there on, and 64
    bits let one wrong state in 10^19 through.
    """
    lengths = np.diff(start)
    place = np.arange(len(rows), dtype=np.uint64) - np.repeat(start[:-1], lengths).astype(np.uint64)
    total = np.cumsum(_mix(rows + place * _GOLDEN), dtype=np.uint64)
    before = np.zeros(len(start) - 1, np.uint64)
    inner = start[:-1] > 0
    before[inner] = total[start[:-1][inner] - 1]
    found: UInt64 = total - np.repeat(before, lengths)
    return found


def window_start(hashes: UInt64, cap: int) -> int:
    """The first row that is kept of a history longer than `cap` rows.

    Chosen by content (the smallest hash in the oldest quarter of the newest `cap` rows), so that it is the same
    whatever was cached, and stays where it is while new events arrive, until that row falls out: with cap 200 a
    history is rebuilt every 25 events and not at each.
    """
    total = len(hashes)
    if total <= cap:
        return 0
    oldest = total - cap
    chunk = max(1, cap // _CHUNK_SHARE)
    return oldest + int(np.argmin(hashes[oldest : oldest + chunk]))


def _mix(x: UInt64) -> UInt64:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
