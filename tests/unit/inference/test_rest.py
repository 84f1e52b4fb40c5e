"""A client that was just turned away asks nothing of the kind for a moment."""

from __future__ import annotations

from services.inference.rest import REST_SHARE, Rest


def often_refused(now: float, budget_s: float, priority: int) -> Rest:
    rest = Rest()
    for moment in (now - 0.002, now - 0.001, now):
        rest.refused(moment, budget_s, priority)
    return rest


def test_one_burst_of_arrivals_is_no_overload() -> None:
    rest = Rest()
    for moment in (10.0, 10.001, 10.1, 10.101, 10.2):
        rest.refused(moment, 0.06, 0)
        assert not rest.covers(moment, 0.06, 0)


def test_an_overload_goes_on_without_being_proved_again() -> None:
    rest = often_refused(10.0, 0.06, 0)
    rest.refused(10.05, 0.06, 0)
    assert rest.covers(10.051, 0.06, 0)


def test_what_has_hardly_more_time_and_is_no_more_urgent_is_spared_the_engine() -> None:
    rest = often_refused(10.0, 0.06, 1)
    assert rest.covers(10.001, 0.06, 1)
    assert rest.covers(10.001, 0.065, 1)  # the same deadline, less lost on the way
    assert rest.covers(10.001, 0.02, 2)


def test_what_is_more_urgent_or_has_more_time_is_asked_all_the_same() -> None:
    rest = often_refused(10.0, 0.06, 1)
    assert not rest.covers(10.001, 0.06, 0)
    assert not rest.covers(10.001, 0.08, 1)


def test_the_rest_ends_by_itself() -> None:
    rest = often_refused(10.0, 0.06, 0)
    assert not rest.covers(10.0 + REST_SHARE * 0.06, 0.06, 0)


def test_nothing_is_spared_before_the_first_refusal() -> None:
    assert not Rest().covers(10.0, 0.06, 0)
