from __future__ import annotations

from services.recommender.jobs.sweeper import Deafness


def test_a_worker_that_takes_no_message_while_none_is_at_work_is_deaf_after_a_while() -> None:
    now = [0.0]

    def clock() -> float:
        return now[0]

    deafness = Deafness(20.0, clock)
    assert not deafness.is_deaf(due=5, sent=0, at_work=False)
    now[0] = 19.0
    assert not deafness.is_deaf(due=5, sent=0, at_work=False)
    now[0] = 20.0
    assert deafness.is_deaf(due=5, sent=0, at_work=False)
    assert not deafness.is_deaf(due=5, sent=0, at_work=False)  # the fresh worker has its time as well


def test_a_message_taken_a_chunk_in_hand_or_nothing_due_is_no_deafness() -> None:
    now = [0.0]

    def clock() -> float:
        return now[0]

    for quiet in (
        {"due": 0, "sent": 0, "at_work": False},
        {"due": 5, "sent": 1, "at_work": False},
        {"due": 5, "sent": 0, "at_work": True},
    ):
        deafness = Deafness(20.0, clock)
        assert not deafness.is_deaf(due=5, sent=0, at_work=False)
        now[0] += 15.0
        assert not deafness.is_deaf(due=int(quiet["due"]), sent=int(quiet["sent"]), at_work=bool(quiet["at_work"]))
        now[0] += 15.0
        assert not deafness.is_deaf(due=5, sent=0, at_work=False)
