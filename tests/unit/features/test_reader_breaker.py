from __future__ import annotations

from services.features.reading.breaker import LATE_SPAN_S, CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _open(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=3, probe_interval_s=0.25, clock=clock)
    for _ in range(3):
        assert breaker.allow()
        breaker.failed()
    return breaker


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = CircuitBreaker(failures=3)
    for _ in range(10):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.allow()
    assert not breaker.is_open


def test_one_stall_that_makes_many_answers_late_does_not_open_it_and_lasting_lateness_does() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=3, clock=clock)
    for _ in range(50):
        breaker.failed(late=True)
        clock.now += LATE_SPAN_S / 51
    assert not breaker.is_open
    clock.now += LATE_SPAN_S / 50
    breaker.failed(late=True)
    assert breaker.is_open
    breaker.succeeded()
    assert not breaker.is_open
    breaker.failed(late=True)
    assert not breaker.is_open, "the time counts from the first failure after a success"


def test_an_open_breaker_lets_one_probe_through_each_interval() -> None:
    clock = Clock()
    breaker = _open(clock)
    assert [breaker.allow() for _ in range(5)] == [False] * 5
    clock.now += 0.25
    assert [breaker.allow() for _ in range(5)] == [True, False, False, False, False]
    breaker.failed()
    clock.now += 0.2
    assert not breaker.allow()
    clock.now += 0.05
    assert breaker.allow()


def test_a_probe_that_succeeds_closes_the_breaker() -> None:
    clock = Clock()
    breaker = _open(clock)
    clock.now += 0.25
    assert breaker.allow()
    breaker.succeeded()
    assert [breaker.allow() for _ in range(3)] == [True] * 3
