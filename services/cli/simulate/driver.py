"""Requests in their time, at most so many at once; each answer is seen by its user and clicked as the model says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.cli.simulate.shop import Shop, events_of, items_of
from services.recommender.experiments.simulator.clicks import ClickModel
from services.recommender.experiments.simulator.tally import Tally
from services.recommender.experiments.simulator.users import Arrival

NO_VARIANT = "(none)"
"""What the report calls users whom no variant was given."""
LATE_S = 0.1


@dataclass
class Traffic:
    """`tallies` by variant of the watched experiment. `refused`: turned away or not answered in time; `late`: sent more
    than 0.1 s after their time, since all lanes were busy: then the rate was not kept."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    requests: int = 0
    refused: int = 0
    late: int = 0
    degraded: int = 0
    events: int = 0
    lost_events: int = 0


async def drive(
    shop: Shop,
    model: ClickModel,
    arrivals: Iterator[Arrival],
    *,
    experiment: str | None,
    concurrency: int,
    advance: Callable[[], None] = lambda: None,
) -> Traffic:
    """Ends with the arrivals. Raises SilkrecError at the first fault that is no overload.

    A lane serves one request at a time, events included: a user has clicked before the lane goes on.
    """
    traffic, begin = Traffic(), asyncio.get_running_loop().time()

    async def lane() -> None:
        for arrival in arrivals:  # shared: a lane takes the next one that nobody took
            behind = asyncio.get_running_loop().time() - begin - arrival.at_s
            if behind < 0:
                await asyncio.sleep(-behind)
            elif behind > LATE_S and arrival.at_s:
                traffic.late += 1
            await _visit(shop, model, arrival, experiment, traffic)
            advance()

    lanes = [asyncio.create_task(lane()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
    return traffic


async def _visit(shop: Shop, model: ClickModel, arrival: Arrival, experiment: str | None, traffic: Traffic) -> None:
    traffic.requests += 1
    answer = await shop.recommend(arrival.user_id)
    if answer is None:
        traffic.refused += 1
        return
    traffic.degraded += bool(answer["degraded_stages"])
    variants = {row["key"]: row["variant"] for row in answer["experiments"]}
    probabilities = model.probabilities(arrival.user_id, items_of(answer))
    clicked, purchased = model.draw(probabilities, arrival.number)
    variant = NO_VARIANT if experiment is None else variants.get(experiment, NO_VARIANT)
    traffic.tallies.setdefault(variant, Tally()).add(arrival.user_id, probabilities, clicked, purchased)
    if len(probabilities):
        events = events_of(arrival.user_id, answer, clicked, purchased)
        traffic.events += len(events)
        if not await shop.send(events):
            traffic.lost_events += len(events)
