"""Which settings are tried, and which one is best. Knows nothing of processes: it asks `measure`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

from services.cli.tune.trial import Row, Setting

# A rate that is held is doubled, one that is not is halved; then the middle of both, three times: 1/8 of the step.
BISECTIONS, MOST_TRIALS = 3, 14
Measure = Callable[[float], Awaitable[Row]]


async def ladder(measure: Measure, start: float) -> list[Row]:
    """Rows at rising and falling rates around the highest one that is held."""
    rows: list[Row] = []
    held, lost, rate = 0.0, math.inf, start
    bisections = 0
    while len(rows) < MOST_TRIALS and bisections <= BISECTIONS:
        rows.append(await measure(rate))
        if rows[-1].held:
            held = max(held, rate)
        else:
            lost = min(lost, rate)
        if held and lost < math.inf:
            bisections += 1
            rate = round((held + lost) / 2, 1)
        else:
            rate = round(rate * 2 if held else rate / 2, 1)
        if rate < 1:
            break
    return rows


def best(rows: Sequence[Row]) -> Row | None:
    """The highest rate held; of equal ones the lower p99. None: no setting held any rate."""
    return max((row for row in rows if row.held), key=lambda row: (row.rate, -row.p99_ms), default=None)


def sizes_first(sizes: Sequence[int], delay_ms: float) -> list[Setting]:
    return [Setting(size, delay_ms) for size in sizes]


def delays_then(found: Row, delays_ms: Sequence[float]) -> list[Setting]:
    """Sizes are chosen at one delay, delays at the size chosen: a sum of trials instead of their product."""
    tried = found.setting
    return [Setting(tried.max_batch_size, delay) for delay in delays_ms if delay != tried.max_queue_delay_ms]
