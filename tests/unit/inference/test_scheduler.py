"""The scheduler as a state machine: time is a number that the test moves."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.cost_model import Load
from services.inference.engine.scheduler import BatchPolicy, Plan, Scheduler, Ticket
from shared.errors import Overloaded

CALL_S, ROW_S, CANDIDATE_S = 1e-3, 1e-5, 1e-5


@dataclass
class LinearCost:
    """1 ms a call, 10 us a row and a candidate. `margin`: by how much a bound is above what is expected."""

    margin: float = 1.0

    def predict(self, load: Load) -> float:
        return self.mean(load) * self.margin

    def mean(self, load: Load) -> float:
        return 0.0 if load.requests == 0 else CALL_S + load.rows * ROW_S + load.candidates * CANDIDATE_S

    def candidates_within(self, load: Load, rows: int, candidates: int, budget_s: float, cached: int = 0) -> int:
        base = self.predict(load.plus(rows, 0, cached))
        return max(0, min(candidates, int((budget_s - base) / (CANDIDATE_S * self.margin))))


@dataclass
class ScaledCost(LinearCost):
    factor: float = 1.0

    def mean(self, load: Load) -> float:
        return self.factor * super().mean(load)


@dataclass(eq=False)
class Model:
    """A payload is the history rows that are left to compute."""

    cost: LinearCost = field(default_factory=LinearCost)

    def rows_of(self, payload: object) -> tuple[int, int]:
        assert isinstance(payload, int)
        return payload, 0


MODEL = Model()
EAGER = BatchPolicy(max_queue_delay_s=0.0, max_batch_s=1.0)


def ticket(
    deadline: float, *, rows: int = 0, candidates: int = 100, priority: int = 0, at: float = 0.0, lane: Model = MODEL
) -> Ticket:
    return Ticket(lane, deadline, rows, candidates, at, 0, priority, candidates > 0, rows)


def scheduler_with(*tickets: Ticket, policy: BatchPolicy = EAGER) -> Scheduler:
    scheduler = Scheduler(policy)
    for one in tickets:
        scheduler.submit(one)
    return scheduler


def admitted(crowd: list[Ticket], policy: BatchPolicy) -> tuple[Scheduler, list[Ticket]]:
    """Those that were not turned away at the door."""
    scheduler, inside = Scheduler(policy), []
    for one in crowd:
        with suppress(Overloaded):
            scheduler.submit(one)
            inside.append(one)
    return scheduler, inside


def ran(plan: Plan) -> list[Ticket]:
    return [placed.ticket for placed in plan.batch]


def test_the_earliest_deadline_runs_first_whatever_came_first() -> None:
    late, early = ticket(2.0), ticket(1.0)
    assert ran(scheduler_with(late, early).next(0.0)) == [early, late]


def test_a_more_urgent_class_goes_before_an_earlier_deadline() -> None:
    background, urgent = ticket(0.5, priority=1), ticket(1.0, priority=0)
    scheduler = scheduler_with(background, urgent)
    assert ran(scheduler.next(0.0)) == [urgent]
    assert ran(scheduler.next(0.0)) == [background]


def test_a_job_gets_short_batches_while_people_come_and_long_ones_when_nobody_does() -> None:
    policy = BatchPolicy(max_queue_delay_s=0.0, max_batch_s=0.005, max_idle_batch_s=0.021)
    scheduler = scheduler_with(
        ticket(1.0, candidates=200), *(ticket(60.0, candidates=200, priority=1) for _ in range(30)), policy=policy
    )
    assert [len(scheduler.next(0.1 * n).batch) for n in range(3)] == [1, 2, 2]
    assert len(scheduler.next(10.0).batch) == 10


def test_while_people_come_a_job_gets_its_share_of_the_time_and_all_of_it_when_nobody_does() -> None:
    policy = BatchPolicy(max_queue_delay_s=0.0, max_batch_s=0.005, lower_share=0.5)
    jobs = (ticket(60.0, candidates=200, priority=1) for _ in range(30))
    scheduler = scheduler_with(ticket(1.0, candidates=200), *jobs, policy=policy)
    assert [one.priority for one in ran(scheduler.next(0.0))] == [0]
    assert [one.priority for one in ran(scheduler.next(0.01))] == [1, 1]  # 5 ms
    held = scheduler.next(0.015)
    assert not held.batch
    assert held.wake_at == pytest.approx(0.02)
    scheduler.submit(ticket(1.0, at=0.016))
    assert [one.priority for one in ran(scheduler.next(0.016))] == [0]
    assert [one.priority for one in ran(scheduler.next(0.02))] == [1, 1]
    assert scheduler.next(10.0).batch
    assert scheduler.next(10.04).batch


def test_behind_an_online_encode_a_job_waits_for_the_ranking_that_follows() -> None:
    scheduler = scheduler_with(ticket(1.0, candidates=0), ticket(60.0, priority=1))
    assert ran(scheduler.next(0.0))[0].priority == 0
    held = scheduler.next(0.001)
    assert not held.batch
    assert held.wake_at is not None
    ranking = ticket(1.0, at=0.003)
    scheduler.submit(ranking)
    assert ran(scheduler.next(0.003)) == [ranking]
    assert [one.priority for one in ran(scheduler.next(held.wake_at))] == [1]


def test_a_job_that_fills_its_places_in_the_queue_leaves_people_theirs() -> None:
    policy = BatchPolicy(max_queue_size=2)
    scheduler = scheduler_with(ticket(60.0, priority=1), ticket(60.0, priority=2), policy=policy)
    with pytest.raises(Overloaded, match="2 requests"):
        scheduler.submit(ticket(60.0, priority=1))
    scheduler.submit(ticket(1.0))
    scheduler.submit(ticket(1.0))
    with pytest.raises(Overloaded, match="2 requests"):
        scheduler.submit(ticket(1.0))


def test_nobody_waits_for_the_company_of_a_job() -> None:
    scheduler = Scheduler(BatchPolicy(max_queue_delay_s=0.002))
    for n in range(10):
        scheduler.submit(ticket(60.0, priority=1, at=n * 1e-4))
    scheduler.submit(ticket(1.0, at=0.001))
    assert [one.priority for one in ran(scheduler.next(0.001))] == [0]


def test_a_request_without_time_for_all_its_candidates_gets_the_first_that_fit() -> None:
    plan = scheduler_with(ticket(0.003, candidates=500)).next(0.0)
    assert [placed.candidates for placed in plan.batch] == [200]
    assert not plan.refused


def test_a_request_without_time_for_one_candidate_is_answered_at_once() -> None:
    hopeless = ticket(0.0005)
    plan = scheduler_with(hopeless).next(0.0)
    assert not plan.batch
    assert [(refused.ticket, refused.reason) for refused in plan.refused] == [(hopeless, "deadline")]


def test_encoding_is_never_trimmed_but_runs_whole_or_not_at_all() -> None:
    hopeless, possible = ticket(0.0015, rows=100, candidates=0), ticket(0.01, rows=100, candidates=0)
    plan = scheduler_with(hopeless, possible).next(0.0)
    assert [refused.ticket for refused in plan.refused] == [hopeless]
    assert ran(plan) == [possible]


def test_an_expired_request_never_reaches_the_device() -> None:
    expired, alive = ticket(1.0), ticket(2.0)
    plan = scheduler_with(expired, alive).next(1.0)
    assert [refused.ticket for refused in plan.refused] == [expired]
    assert ran(plan) == [alive]


def test_a_cancelled_request_never_reaches_the_device_and_frees_its_place() -> None:
    gone, alive = ticket(1.0), ticket(2.0)
    scheduler = scheduler_with(gone, policy=BatchPolicy(max_queue_size=1, max_queue_delay_s=0.0))
    assert scheduler.cancel(gone)
    scheduler.submit(alive)
    assert ran(scheduler.next(0.0)) == [alive]
    assert not scheduler.cancel(alive)


def test_a_full_queue_refuses_at_once() -> None:
    scheduler = scheduler_with(ticket(1.0), policy=BatchPolicy(max_queue_size=1))
    with pytest.raises(Overloaded):
        scheduler.submit(ticket(1.0))


def test_company_that_would_make_the_first_one_late_waits_for_the_next_batch() -> None:
    pressed, patient = ticket(0.003, candidates=150), ticket(1.0, candidates=500)
    scheduler = scheduler_with(pressed, patient)
    assert ran(scheduler.next(0.0)) == [pressed]
    assert ran(scheduler.next(0.0025)) == [patient]


def test_a_second_request_that_cannot_wait_takes_what_is_left_of_the_first_ones_time() -> None:
    # Together 100 + 100 candidates fit into 3 ms; behind the first batch (2 ms) there would be time for none. Both had
    # more time when they came, else the second one would have been turned away.
    first, second = ticket(0.003, candidates=100, at=-0.01), ticket(0.003, candidates=300, at=-0.01)
    plan = scheduler_with(first, second).next(0.0)
    assert [placed.candidates for placed in plan.batch] == [100, 100]


def test_a_request_is_turned_away_when_those_before_it_leave_it_no_time() -> None:
    scheduler = scheduler_with(*(ticket(0.04, candidates=200) for _ in range(8)))
    with pytest.raises(Overloaded, match="8 requests"):
        scheduler.submit(ticket(0.01, candidates=200))
    scheduler.submit(ticket(0.04, candidates=200))
    assert len(scheduler) == 9


@pytest.mark.parametrize(("real_over_predicted", "room"), [(0.6, 13), (1.8, 8)])
def test_the_door_goes_by_how_long_waits_have_really_taken(real_over_predicted: float, room: int) -> None:
    scheduler, cost = Scheduler(EAGER), ScaledCost()
    for now in range(200):
        one = ticket(now + 1.0, candidates=2000, at=now, lane=Model(cost))  # 21 ms, says the door
        cost.factor = 1.0
        scheduler.submit(one)
        cost.factor = real_over_predicted
        assert ran(scheduler.next(now)) == [one]
    assert scheduler.pace == pytest.approx(real_over_predicted, rel=0.02)
    inside = 0
    with suppress(Overloaded):
        for _ in range(100):
            scheduler.submit(ticket(300.04, candidates=400, at=300.0))  # 4 ms each, and one more in all
            inside += 1
    assert inside == room


def test_the_door_goes_by_what_waits_are_expected_to_take_and_not_by_their_bound() -> None:
    cautious = Model(LinearCost(margin=3.0))
    scheduler = scheduler_with(*(ticket(0.04, candidates=200, lane=cautious) for _ in range(8)))
    scheduler.submit(ticket(0.04, candidates=200, lane=cautious))
    assert len(scheduler) == 9, "19 ms are expected, and 57 are the bound"


def test_the_batch_that_runs_counts_for_whoever_comes_behind_it() -> None:
    scheduler = scheduler_with(*(ticket(1.0, candidates=200) for _ in range(8)))
    assert len(scheduler.next(0.0).batch) == 8
    for _ in range(8):
        scheduler.submit(ticket(1.0, candidates=200, at=0.002))
    with pytest.raises(Overloaded):
        scheduler.submit(ticket(0.032, candidates=0, at=0.002))  # 15 ms are left of the 17, and 17 wait
    assert scheduler.is_full(0.002, 0.03)
    assert not scheduler.is_full(0.017, 0.03), "by then it is done"


def test_behind_a_few_long_requests_nobody_is_turned_away() -> None:
    scheduler = scheduler_with(*(ticket(1.0, candidates=1000) for _ in range(7)))
    scheduler.submit(ticket(0.02, candidates=0))
    assert len(scheduler) == 8
    assert not scheduler.is_full(0.0, 0.02)


def test_an_urgent_request_is_not_turned_away_for_those_that_it_goes_before() -> None:
    scheduler = scheduler_with(*(ticket(1.0, candidates=900, priority=1) for _ in range(20)))
    scheduler.submit(ticket(0.01))
    assert len(scheduler) == 21


def test_the_door_is_seen_full_until_a_batch_made_room() -> None:
    scheduler = scheduler_with(*(ticket(1.0, candidates=1000) for _ in range(9)))
    assert scheduler.is_full(0.0, 0.02)
    assert not scheduler.is_full(0.0, 1.0)
    while len(scheduler) >= 8:
        scheduler.next(0.0)
    assert not scheduler.is_full(0.0, 0.02)


def test_a_batch_ends_before_it_becomes_longer_than_its_bound() -> None:
    policy = BatchPolicy(max_queue_delay_s=0.0, max_batch_s=0.005)
    scheduler = scheduler_with(*(ticket(1.0, candidates=200) for _ in range(5)), policy=policy)
    assert [len(scheduler.next(0.0).batch) for _ in range(3)] == [2, 2, 1]


def test_one_request_longer_than_the_bound_still_runs() -> None:
    policy = BatchPolicy(max_queue_delay_s=0.0, max_batch_s=0.001)
    assert len(scheduler_with(ticket(1.0, candidates=900), policy=policy).next(0.0).batch) == 1


def test_two_models_never_share_a_batch() -> None:
    other = Model()
    one, two, three = ticket(1.0), ticket(2.0, lane=other), ticket(3.0)
    scheduler = scheduler_with(one, two, three)
    assert ran(scheduler.next(0.0)) == [one, three]
    assert ran(scheduler.next(0.0)) == [two]


def test_without_batching_every_request_runs_alone() -> None:
    policy = BatchPolicy(enabled=False)
    scheduler = scheduler_with(ticket(1.0), ticket(1.0), policy=policy)
    assert len(scheduler.next(0.0).batch) == 1


WAITING = BatchPolicy(max_queue_delay_s=0.002, preferred_batch_size=(4,), max_batch_s=1.0)


def busy() -> Scheduler:
    """An empty queue that has just seen ten requests come 0.1 ms apart, the last at 0."""
    scheduler = scheduler_with(*(ticket(1.0, at=(i - 9) * 1e-4) for i in range(10)), policy=WAITING)
    while len(scheduler):
        scheduler.next(0.01)  # the delay is over: nothing waits for company any more
    return scheduler


def test_while_requests_come_close_together_a_batch_waits_for_company_until_the_delay_is_over() -> None:
    scheduler = busy()
    scheduler.submit(ticket(1.0, at=0.0005))
    scheduler.submit(ticket(1.0, at=0.001))
    plan = scheduler.next(0.001)
    assert not plan.batch
    assert plan.wake_at == pytest.approx(0.0025)
    assert len(scheduler.next(0.0025).batch) == 2


def test_a_preferred_size_goes_without_waiting() -> None:
    scheduler = busy()
    for i in range(4):
        scheduler.submit(ticket(1.0, at=i * 1e-4))
    assert len(scheduler.next(0.0004).batch) == 4


def test_a_lone_request_never_waits_for_company_that_is_not_expected() -> None:
    scheduler = scheduler_with(ticket(1.0, at=0.0), policy=WAITING)
    assert len(scheduler.next(0.0).batch) == 1
    scheduler.submit(ticket(2.0, at=1.0))
    assert len(scheduler.next(1.0).batch) == 1


def test_after_a_busy_time_the_first_request_behind_a_silence_does_not_wait() -> None:
    scheduler = busy()
    scheduler.submit(ticket(2.0, at=1.0))
    assert len(scheduler.next(1.0).batch) == 1


@pytest.mark.parametrize(("margin", "deadline"), [(1.0, 0.0045), (1.25, 0.0055)])
def test_waiting_for_company_never_makes_a_request_late(margin: float, deadline: float) -> None:
    scheduler = busy()
    lane = Model(LinearCost(margin))
    scheduler.submit(ticket(deadline, candidates=300, at=0.0, lane=lane))  # 4 ms of work, or 5
    plan = scheduler.next(0.0)
    assert plan.wake_at == pytest.approx(0.0005)
    assert len(scheduler.next(0.0005).batch) == 1


@st.composite
def crowds(draw: st.DrawFn) -> list[Ticket]:
    lanes = [MODEL, Model(LinearCost(margin=1.3))]
    count = draw(st.integers(1, 40))
    return [
        ticket(
            draw(st.floats(0.0, 0.1)),
            rows=draw(st.integers(0, 200)),
            candidates=draw(st.integers(0, 1000)),
            priority=draw(st.integers(0, 2)),
            lane=draw(st.sampled_from(lanes)),
        )
        for _ in range(count)
    ]


policies = st.builds(
    BatchPolicy,
    max_batch_size=st.integers(1, 8),
    preferred_batch_size=st.just((4,)),
    max_queue_delay_s=st.sampled_from([0.0, 0.001]),
    max_batch_s=st.sampled_from([0.002, 0.01]),
    enabled=st.booleans(),
)


def rounds(scheduler: Scheduler, *, start: float = 0.0) -> list[tuple[float, Plan]]:
    """Until the queue is empty; a batch takes as long as predicted."""
    now, plans = start, []
    while len(scheduler):
        plan = scheduler.next(now)
        plans.append((now, plan))
        assert plan.batch or plan.refused or (plan.wake_at is not None and plan.wake_at > now), "no progress"
        now = max(now + MODEL.cost.predict(plan.load), (plan.wake_at or now) if not plan.batch else now)
    return plans


@given(crowds(), policies)
def test_no_request_is_lost_or_answered_twice(crowd: list[Ticket], policy: BatchPolicy) -> None:
    scheduler, inside = admitted(crowd, policy)
    answered = [t for _, plan in rounds(scheduler) for t in (*ran(plan), *(refused.ticket for refused in plan.refused))]
    assert len(answered) == len(inside)
    assert {id(t) for t in answered} == {id(t) for t in inside}


@given(crowds(), policies)
def test_a_batch_never_exceeds_its_size_nor_mixes_models(crowd: list[Ticket], policy: BatchPolicy) -> None:
    for _, plan in rounds(admitted(crowd, policy)[0]):
        assert len(plan.batch) <= (policy.max_batch_size if policy.enabled else 1)
        assert len({id(t.lane) for t in ran(plan)}) <= 1
        assert all(0 <= placed.candidates <= placed.ticket.candidates for placed in plan.batch)


@given(crowds(), policies)
def test_whoever_is_placed_is_done_by_its_deadline_as_predicted(crowd: list[Ticket], policy: BatchPolicy) -> None:
    for now, plan in rounds(admitted(crowd, policy)[0]):
        finish = now + MODEL.cost.predict(plan.load)
        assert all(finish <= t.deadline + 1e-9 for t in ran(plan))


@given(crowds(), policies)
def test_of_one_model_nobody_overtakes_an_earlier_deadline_of_its_class(
    crowd: list[Ticket], policy: BatchPolicy
) -> None:
    order: dict[int, list[tuple[int, float, int]]] = {}
    for _, plan in rounds(admitted(crowd, policy)[0]):
        for t in ran(plan):
            order.setdefault(id(t.lane), []).append(t.order)
    for started in order.values():
        assert all(before <= after for before, after in pairwise(started))


def test_a_belief_that_lets_nothing_run_is_measured_now_and_then() -> None:
    """A warm-up while the machine was busy says 100 ms a call; deadlines are 68 ms away."""
    lane = Model(ScaledCost(factor=100.0))
    scheduler = Scheduler(EAGER)
    outcomes = []
    for step in range(40):
        now = step * 0.1
        scheduler.submit(ticket(now + 0.068, candidates=100 if step % 2 else 0, lane=lane, at=now))
        plan = scheduler.next(now)
        outcomes.append([placed.candidates for placed in plan.batch])
        assert len(plan.batch) + len(plan.refused) == 1
    tried = [step for step, placed in enumerate(outcomes) if placed]
    assert tried == [5, 11, 17, 23, 29, 35], "half a second after the first refusal behind each"
    assert all(outcomes[step] == [step % 2] for step in tried), "an encode whole, a ranking with one candidate"


def test_nothing_is_tried_while_the_device_is_busy() -> None:
    lane = Model(ScaledCost(factor=100.0))
    scheduler = Scheduler(EAGER)
    for step in range(40):
        now = step * 0.1
        scheduler.submit(ticket(now + 0.068, lane=lane, at=now))
        assert not scheduler.next(now, now + 0.01).batch
