"""Which requests run next, together, and with how many candidates. A state machine without threads, clock or torch.

Earliest deadline first inside priority classes (0 is the most urgent). A batch ends where one more request would make
the batch late for anyone in it, or longer than `max_batch_s` (half of what waits, when that is longer): a running batch
cannot be interrupted, so its length is what a request that arrives meanwhile waits. Names as in Triton's dynamic
batcher; sizes count requests.

Priority 0 is the class of online requests. Lower classes get what it leaves: they run while none of it waits, never
ride in its batches (a rider would make it later by up to `max_batch_s`), and hold at most as many places as it has of
its own. While it was seen within `_QUIET_S`, their batches are as short as its own, for whoever comes waits one out,
and take `lower_share` of the time: services on the same cores get the rest.

An online request is turned away at the door when the batch that runs and what waits before it would take
`_ADMIT_SHARE` of its time, as expected and at the pace at which waits have passed of late. Expected, not bounded: the
cost model's bound is a high quantile of one batch, which several in a row do not all reach. It was twice the mean on
two contended cores, and the door refused behind 9 requests of 1.2 ms each: 677 requests a second, and 850 without.
When more waits all the same than the deadlines have time for, whoever could not wait for a full batch is refused at
once: serving the oldest first, each trimmed to what its last milliseconds allow, would spend the device on crumbs.
Simulated with a learned cost model and 15 % of noise: at three times the capacity 1.00 of the best goodput, and 0.24
without this rule.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from services.inference.engine.cost_model import Load
from shared.errors import Overloaded

DEADLINE, OVERLOADED = "deadline", "overloaded"
_BACKLOG_SHARE = 0.75
"""Of the most patient request's time: a longer backlog is an overload. At 1 the queue hovers where every request has
just enough time, and half of the batches hold one."""
_CROWD = 8
"""Requests that wait, from which on the door turns others away: an overload is many. Without it encodes, which have a
fraction of the time, were refused behind two long rankings: 106 of 500 calls of the demo lost their user vector."""
_BATCH_SHARE = 0.5
"""Of what waits, in one batch at most where that is longer than `max_batch_s`: whoever comes has to wait for all of it
anyhow, and 16 requests in a pass take 2.2 ms each where three take 3.3."""
_ADMIT_SHARE = 0.85
"""Of a request's time, for the batch that runs, those that wait before it and itself; the rest is for the way back and
for what nobody expects. At 0.5 the door turned 9 % away at a rate at which 0.85 turned away 1 %, p99 56 ms; at three
times the capacity both serve the same."""
_PACE_SMOOTHING = 0.05
_PACE_BOUNDS = (0.5, 2.0)
_PACE_FROM_S = 0.01
"""Shorter waits than this say little."""
_QUIET_S = 5.0
"""Without an online request, after which batches of lower classes may take `max_idle_batch_s`."""
_RANKING_COMES_S = 0.004
"""After an online encode no batch of a lower class begins for so long: the ranking of the same request follows when
its candidates were found, and would have to wait that batch out. As disk schedulers anticipate (Iyer and Druschel 2001,
SOSP)."""
_LOCKED_S = 0.5
"""So long refused by prediction alone, with nothing run in between, and one request runs all the same: a belief that
lets nothing run is never measured against anything. Seen behind a warm-up on a busy machine: 1 of some 80 answers."""
# Together 1: one silence ends the waiting for company, and five arrivals close together (0.75^5 * 4 < 1) begin it.
_GAP_SMOOTHING = 0.25
_GAP_CAP = 4.0


class Predictor(Protocol):
    """See `CostModel`."""

    def mean(self, load: Load) -> float: ...

    def predict(self, load: Load) -> float: ...

    def candidates_within(self, load: Load, rows: int, candidates: int, budget_s: float, cached: int = 0) -> int: ...


class Lane(Protocol):
    """What runs together: one model, which knows its own cost."""

    @property
    def cost(self) -> Predictor: ...

    def rows_of(self, payload: object) -> tuple[int, int]:
        """History rows to compute, and rows that seem to be cached."""
        ...


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """`preferred_batch_size`: with so many waiting, company is no longer waited for (lengths are packed, so there is
    nothing to gain from an exact size). `max_queue_size`: of the online class, and once more of all lower ones.
    `max_idle_batch_s` bounds batches of lower classes while no online requests come, `lower_share` is what these get of
    the time while some do. `enabled` False: one request a batch."""

    max_batch_size: int = 128
    preferred_batch_size: tuple[int, ...] = (32, 64)
    max_queue_delay_s: float = 0.001
    max_queue_size: int = 512
    max_batch_s: float = 0.008
    max_idle_batch_s: float = 0.03
    lower_share: float = 0.5
    enabled: bool = True


@dataclass(slots=True, eq=False)
class Ticket:
    """One queued request. `deadline` on the engine's clock; `candidates` 0 with `trimmable` False: encode only. `rows`
    are computed, `cached` are read; asked again when a batch is formed, for others may have filled the cache."""

    lane: Lane
    deadline: float
    rows: int
    candidates: int
    arrived: float
    cached: int = 0
    priority: int = 0
    trimmable: bool = True
    payload: object = None
    order: tuple[int, float, int] = field(default=(0, 0.0, 0), init=False)
    expected_s: float = field(default=0.0, init=False)
    """From arrival to answer, as predicted at the door."""


@dataclass(frozen=True, slots=True)
class Placed:
    """`candidates` of the ticket's first candidates run."""

    ticket: Ticket
    candidates: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Answered without the device, because of `reason`."""

    ticket: Ticket
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch to run now (may be empty), tickets to answer at once, and when to ask again if nothing happens."""

    batch: tuple[Placed, ...] = ()
    refused: tuple[Refused, ...] = ()
    load: Load = field(default_factory=Load)
    wake_at: float | None = None


class Scheduler:
    """Every call takes the present time; not thread-safe."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self._queue: list[Ticket] = []
        self._sequence = 0
        self._last_arrival = -math.inf
        self._gap_s = math.inf
        self._encoded = False
        self._held_until = -math.inf
        """Lower classes wait till then."""
        self._locked_since: float | None = None
        self._waiting: dict[tuple[int, int], tuple[Lane, Load]] = {}
        """By class and model. Kept up with every arrival: summing a queue of 128 at each of them took a third of the
        engine's throughput."""
        self._busy_until = -math.inf
        """The batch that runs, as expected."""
        self._clear_at = -math.inf
        """When the most urgent requests that wait will be done, as of the last call; in the past while they are few."""
        self.pace = 1.0
        """How long requests took from arrival to answer, over what was predicted at the door: a backlog is not computed
        as the one pass it was predicted as, and other processes run beside. Predictions alone turned 1.6 % away at a
        rate at which p99 was 39 ms of 68."""

    def is_full(self, now: float, seconds: float) -> bool:
        """Would a request with so much time left be turned away? A look from any thread, before it is even parsed."""
        return self._clear_at - now > _ADMIT_SHARE * seconds

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, ticket: Ticket) -> None:
        """Raises Overloaded when `max_queue_size` requests wait already, or more than leaves this one in time."""
        online = self._ahead(0)
        beside = online if ticket.priority == 0 else len(self._queue) - online
        if beside >= self.policy.max_queue_size:
            raise Overloaded(f"{beside} requests wait for the model already", retry_after_s=0.05)
        if ticket.priority == 0:
            self._admit(ticket, online)
        self._sequence += 1
        ticket.order = (ticket.priority, ticket.deadline, self._sequence)
        insort(self._queue, ticket, key=attrgetter("order"))
        self._count(ticket)

    def _admit(self, ticket: Ticket, before: int) -> None:
        """Raises Overloaded for an online request that would be late. When a lower class has its turn, nobody knows."""
        self._notice_arrival(ticket.arrived)
        now = ticket.arrived
        ticket.expected_s = max(0.0, self._busy_until - now) + self._backlog_s(0, ticket)
        wait_s = self.pace * ticket.expected_s
        self._clear_at = now + wait_s if before >= _CROWD else -math.inf
        if before >= _CROWD and wait_s > _ADMIT_SHARE * (ticket.deadline - now):
            raise Overloaded(f"{before} requests before this one would make it late", retry_after_s=0.05)

    def cancel(self, ticket: Ticket) -> bool:
        """True when it still waited; a batch that runs is not interrupted."""
        if ticket not in self._queue:
            return False
        self._remove([ticket])
        return True

    def drain(self) -> list[Ticket]:
        """Everything that waits, taken out."""
        waiting, self._queue, self._waiting = self._queue, [], {}
        return waiting

    def next(self, now: float, free_at: float | None = None) -> Plan:
        """Takes what it returns out of the queue. `free_at`: when the device will be free, if that is later than `now`;
        predictions begin there."""
        policy = self.policy
        if self._encoded:
            self._encoded, self._held_until = False, max(self._held_until, now + _RANKING_COMES_S)
        refused = self._take_expired(now)
        start = now if free_at is None else max(now, free_at)
        refused += self._take_hopeless(start)
        if not self._queue:
            self._clear_at = -math.inf
            return Plan(refused=tuple(refused))
        if self._queue[0].priority > 0 and now < self._held_until:
            soonest = min(ticket.deadline for ticket in self._queue)
            return Plan(refused=tuple(refused), wake_at=min(self._held_until, soonest))
        wake_at = self._worth_waiting_until(now)
        if wake_at is not None:
            return Plan(refused=tuple(refused), wake_at=wake_at)
        batch, load = self._fill(start, self._longest_s(now), refused, may_try=self._is_locked(now) and start <= now)
        self._notice_lock(now, is_running=bool(batch) or start > now)
        self._learn_pace(batch, start, load)
        self._remove(placed.ticket for placed in batch)
        self._encoded = any(p.ticket.priority == 0 and p.ticket.candidates == 0 for p in batch)
        if batch and batch[0].ticket.priority > 0 and not self._is_quiet(now):
            self._held_until = start + batch[0].ticket.lane.cost.predict(load) / policy.lower_share
        if batch:
            self._busy_until = start + batch[0].ticket.lane.cost.mean(load)
        crowded = self._ahead(0) >= _CROWD
        self._clear_at = max(now, self._busy_until) + self.pace * self._backlog_s(0) if crowded else -math.inf
        return Plan(tuple(batch), tuple(refused), load, now if self._queue else None)

    def _longest_s(self, now: float) -> float:
        """Of the next batch, as expected."""
        policy = self.policy
        if self._queue[0].priority == 0:
            return max(policy.max_batch_s, _BATCH_SHARE * self._backlog_s(0))
        return max(policy.max_batch_s, policy.max_idle_batch_s) if self._is_quiet(now) else policy.max_batch_s

    def _is_quiet(self, now: float) -> bool:
        return now - self._last_arrival > _QUIET_S

    def _is_locked(self, now: float) -> bool:
        return self._locked_since is not None and now - self._locked_since >= _LOCKED_S

    def _notice_lock(self, now: float, *, is_running: bool) -> None:
        if is_running:
            self._locked_since = None
        elif self._locked_since is None:
            self._locked_since = now

    def _learn_pace(self, batch: list[Placed], start: float, load: Load) -> None:
        """From the request that waited longest; lower classes wait for others, whom nobody predicted."""
        if not batch or batch[0].ticket.priority or batch[0].ticket.expected_s < _PACE_FROM_S:
            return
        ticket = batch[0].ticket
        took_s = start + ticket.lane.cost.mean(load) - ticket.arrived
        least, most = _PACE_BOUNDS
        ratio = min(max(took_s / ticket.expected_s, least), most)
        self.pace += _PACE_SMOOTHING * (ratio - self.pace)

    def _take_expired(self, now: float) -> list[Refused]:
        late = [ticket for ticket in self._queue if ticket.deadline <= now]
        if late:
            self._remove(late)
        return [Refused(ticket, DEADLINE) for ticket in late]

    def _take_hopeless(self, start: float) -> list[Refused]:
        """In an overload, those of the most urgent class that would be late behind a full batch. Lower classes wait for
        what that class leaves."""
        if len(self._queue) < 2:
            return []
        urgent = self._queue[0].priority
        mine = [ticket for ticket in self._queue if ticket.priority == urgent]
        if len(mine) < 2 or self._backlog_s(urgent) <= _BACKLOG_SHARE * (mine[-1].deadline - start):
            return []
        short = [ticket for ticket in mine if ticket.deadline - start < self.policy.max_batch_s]
        if not short or len(short) == len(mine):
            return []
        self._remove(short)
        return [Refused(ticket, OVERLOADED) for ticket in short]

    def _count(self, ticket: Ticket) -> None:
        key = ticket.priority, id(ticket.lane)
        _, load = self._waiting.get(key, (ticket.lane, Load()))
        self._waiting[key] = ticket.lane, _joined(load, ticket, ticket.candidates)

    def _ahead(self, priority: int) -> int:
        """Requests that wait in this class and more urgent ones."""
        return sum(load.requests for (waiting, _), (_, load) in self._waiting.items() if waiting <= priority)

    def _backlog_s(self, priority: int, newcomer: Ticket | None = None) -> float:
        """Expected time of all that waits in this class and more urgent ones, and of the newcomer."""
        return sum(lane.cost.mean(load) for lane, load in self._loads(priority, newcomer))

    def _bound_s(self, priority: int) -> float:
        """The same, were it to hold for certain."""
        return sum(lane.cost.predict(load) for lane, load in self._loads(priority))

    def _loads(self, priority: int, newcomer: Ticket | None = None) -> Iterable[tuple[Lane, Load]]:
        """By model."""
        loads: dict[int, tuple[Lane, Load]] = {}
        for (waiting, lane_id), (lane, load) in self._waiting.items():
            if waiting <= priority:
                loads[lane_id] = lane, loads.get(lane_id, (lane, Load()))[1] + load
        if newcomer is not None:
            _, load = loads.get(id(newcomer.lane), (newcomer.lane, Load()))
            loads[id(newcomer.lane)] = newcomer.lane, _joined(load, newcomer, newcomer.candidates)
        return loads.values()

    def _worth_waiting_until(self, now: float) -> float | None:
        """None: go now. Waiting pays only while others are expected within the delay and nobody is made late."""
        policy = self.policy
        enough = min((policy.max_batch_size, *policy.preferred_batch_size))
        online = self._ahead(0)
        if not policy.enabled or self._gap_s > policy.max_queue_delay_s or not 0 < online < enough:
            return None
        if self._backlog_s(0) >= policy.max_batch_s:
            return None
        mine = self._queue[:online]
        oldest = min(ticket.arrived for ticket in mine)
        latest_start = min(ticket.deadline for ticket in mine) - self._bound_s(0)
        until = min(oldest + policy.max_queue_delay_s, latest_start)
        return until if until > now else None

    def _fill(
        self, start: float, longest_s: float, refused: list[Refused], *, may_try: bool
    ) -> tuple[list[Placed], Load]:
        """`may_try`: the first that cannot be served as predicted runs with one candidate, to be measured."""
        batch: list[Placed] = []
        load = Load()
        limit = math.inf
        size = self.policy.max_batch_size if self.policy.enabled else 1
        for ticket in list(self._queue):
            if len(batch) >= size:
                break
            if batch and ticket.priority != batch[0].ticket.priority:
                break  # a class of its own, whose time has not come
            if batch and ticket.lane is not batch[0].ticket.lane:
                continue  # another model: the next batch
            ticket.rows, ticket.cached = ticket.lane.rows_of(ticket.payload)
            count = self._share(ticket, load, min(limit, ticket.deadline) - start, start, longest_s)
            if count is None:
                break
            if count < 0 and may_try and not batch:
                count = min(ticket.candidates, 1)
            if count < 0:
                refused.append(Refused(ticket, DEADLINE))
                self._queue.remove(ticket)  # counted out with the batch
                continue
            batch.append(Placed(ticket, count))
            load = _joined(load, ticket, count)
            limit = min(limit, ticket.deadline)
            if count < ticket.candidates:
                break
        return batch, load

    def _share(self, ticket: Ticket, load: Load, budget_s: float, start: float, longest_s: float) -> int | None:
        """How many candidates of the ticket join the batch; -1: it cannot be served at all; None: it goes later."""
        cost = ticket.lane.cost
        together = _joined(load, ticket, ticket.candidates)
        if load.requests and cost.mean(together) > longest_s:
            return None
        if cost.predict(together) <= budget_s:
            return ticket.candidates
        now_count = self._trimmed(ticket, load, budget_s)
        if not load.requests:
            return now_count
        left_s = ticket.deadline - start - cost.predict(load)
        alone = cost.predict(_joined(Load(), ticket, ticket.candidates))
        later_count = ticket.candidates if alone <= left_s else self._trimmed(ticket, Load(), left_s)
        if now_count < 0 and later_count < 0:
            # Neither beside this batch nor behind it, and time only shrinks.
            return -1
        return now_count if now_count >= max(later_count, 1) else None

    def _trimmed(self, ticket: Ticket, load: Load, budget_s: float) -> int:
        if not ticket.trimmable:
            return -1
        count = ticket.lane.cost.candidates_within(load, ticket.rows, ticket.candidates, budget_s, ticket.cached)
        return count or -1

    def _notice_arrival(self, now: float) -> None:
        # Capped, so that a night's silence is forgotten within a few arrivals.
        gap = min(now - self._last_arrival, _GAP_CAP * self.policy.max_queue_delay_s)
        self._last_arrival = now
        self._gap_s = gap if math.isinf(self._gap_s) else self._gap_s + _GAP_SMOOTHING * (gap - self._gap_s)

    def _remove(self, tickets: Iterable[Ticket]) -> None:
        gone = {id(ticket) for ticket in tickets}
        self._queue = [ticket for ticket in self._queue if id(ticket) not in gone]
        # Anew: what is left to compute of a ticket may have changed since it came.
        self._waiting = {}
        for ticket in self._queue:
            self._count(ticket)


def _joined(load: Load, ticket: Ticket, candidates: int) -> Load:
    return load.plus(ticket.rows, candidates, ticket.cached)
