"""A dependency is killed while a front end keeps asking: answers stay in time, say what they lack, and recover."""

from __future__ import annotations

import itertools

import pytest

from tests.e2e.suite import DEADLINE_MS, USERS, Answer, FrontEnd, Suite, event, until, wait_ready
from tests.servers import MariaDB, RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
_numbers = itertools.count(10_000)


def in_time(answers: list[Answer]) -> None:
    assert [answer.status for answer in answers] == [200] * len(answers)
    late = [round(answer.took_ms) for answer in answers if answer.took_ms > DEADLINE_MS]
    assert not late, f"{len(late)} of {len(answers)} answers were late: {late[:5]} ms"
    assert all(answer.slate["items"] for answer in answers)


def whole(suite: Suite) -> bool:
    """Ten users in a row get slates that give nothing up."""
    return not any(suite.recommend(f"u{number}")["degraded_stages"] for number in range(10))


def test_a_killed_inference_service_costs_no_answer_its_deadline_and_comes_back_by_itself(suite: Suite) -> None:
    before = suite.starts("inference")
    with FrontEnd(suite) as front:
        front.until_more(20)
        killed_at = len(front.answers)
        suite.kill("inference")
        suite.until_restarted("inference", before)
        until(lambda: whole(suite), "full service")
        front.until_more(20)
    assert not front.failures, front.failures
    in_time(front.answers)
    during = set().union(*(answer.gave_up for answer in front.answers[killed_at:]))
    assert during & {"rank", "encode", "inference"}, during
    assert not front.answers[-1].gave_up


def test_a_killed_redis_costs_no_answer_its_deadline_and_loses_no_acknowledged_event(
    suite: Suite, redis_process: RedisServer
) -> None:
    sent: list[str] = []
    with FrontEnd(suite) as front:
        front.until_more(20)
        killed_at = len(front.answers)
        redis_process.kill()
        front.until_more(20)
        for _ in range(5):
            row = event("u3", next(_numbers))
            assert suite.send([row]).status_code == 202
            sent.append(row["event_id"])
        assert suite.recommend("u3", deadline_ms=1000)["last_event_id"] == sent[-1]
        redis_process.start()
        until(lambda: whole(suite), "full service")
        front.until_more(20)
    assert not front.failures, front.failures
    in_time(front.answers)
    during = [answer.slate["degraded_stages"] for answer in front.answers[killed_at:]]
    assert any("redis" in repr(rows) for rows in during)
    assert set(sent) <= suite.event_ids("u3")
    assert suite.recommend("u3")["last_event_id"] == sent[-1]


def test_without_a_database_reads_go_on_and_writes_say_when_to_come_back(suite: Suite, mariadb_server: MariaDB) -> None:
    acknowledged: list[str] = []
    with FrontEnd(suite) as front:
        front.until_more(20)
        mariadb_server.kill()
        refused = until(lambda: _refused(suite, acknowledged), "a write is refused")
        assert refused.headers["retry-after"]
        assert refused.json()["code"] == "database_unavailable"
        front.until_more(40)
        mariadb_server.start()
        row = event("u4", next(_numbers))
        until(lambda: suite.send([row]).status_code == 202, "writes are accepted again")
        acknowledged.append(row["event_id"])
        until(lambda: whole(suite), "full service")
    assert not front.failures, front.failures
    in_time(front.answers)
    assert set(acknowledged) <= suite.event_ids("u4")
    # Slates that were served meanwhile lay in the journal.
    for answer in front.answers[-5:]:
        suite.until_stored(answer.slate["recommendation_id"])


def test_killed_services_come_back_and_lose_nothing_that_was_acknowledged(suite: Suite) -> None:
    for name in ("features", "recommender"):
        before = suite.starts(name)
        rows = [event("u5", next(_numbers)) for _ in range(20)]
        assert suite.send(rows).status_code == 202
        served = suite.recommend("u5")["recommendation_id"]
        suite.kill(name)
        suite.until_restarted(name, before)
        wait_ready(suite)
        suite.until_stored(served)
        assert {row["event_id"] for row in rows} <= suite.event_ids("u5")
    until(lambda: whole(suite), "full service")


def test_the_next_slate_knows_the_event_that_was_just_acknowledged(suite: Suite) -> None:
    for number in range(20):
        user = f"u{number % USERS}"
        row = event(user, next(_numbers))
        assert suite.send([row]).status_code == 202
        assert suite.recommend(user)["last_event_id"] == row["event_id"]


def _refused(suite: Suite, acknowledged: list[str]) -> object:
    row = event("u4", next(_numbers))
    answer = suite.send([row])
    if answer.status_code == 202:
        acknowledged.append(row["event_id"])
        return None
    assert answer.status_code == 503, answer.text
    return answer
