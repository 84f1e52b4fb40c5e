"""PUT and DELETE /v1/feedback: a value is set, never added, and one event stands for it in the history."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from shared.storage.database import Database
from shared.storage.tables import events, feedback, item_daily, user_state
from tests.conftest import SettingsFactory
from tests.integration.features.writing import Service, count, event, run, service

pytestmark = pytest.mark.integration
RATING = "/v1/feedback/ann/i1/rating"


def actions_read(suite: Service) -> list[str]:
    held = suite.stored_history("u:ann")
    return [suite.actions.by_code[code].name for code in held.rows["action"].tolist()]


def test_feedback_that_is_set_twice_is_there_once(database: Database, settings_factory: SettingsFactory) -> None:
    async def test(suite: Service) -> None:
        first = await suite.http.put(RATING, json={"value": 5})
        assert (first.status_code, first.json()["value"]) == (200, 5.0)
        again = await suite.http.put(RATING, json={"value": 5})
        assert again.json() == first.json()
        assert (count(database, events), count(database, feedback)) == (1, 1)
        assert await suite.items_read("u:ann") == ["i1"]

    run(settings_factory(), database, test)


def test_a_new_value_takes_the_place_of_the_old_one_in_history_and_counts(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Service) -> None:
        await suite.send(event(7))
        await suite.http.put(RATING, json={"value": 5})
        await suite.http.put(RATING, json={"value": 1})
        assert actions_read(suite) == ["click", "rating_low"]
        held = await suite.in_redis("u:ann")
        assert held is not None
        assert held.rows.tobytes() == suite.stored_history("u:ann").rows.tobytes()
        with database.read() as connection:
            counts = dict(map(tuple, connection.execute(select(item_daily.c.action, item_daily.c.events))))
        names = {suite.actions.by_code[code].name: events for code, events in counts.items() if events}
        assert names == {"click": 1, "rating_low": 1}

    run(settings_factory(), database, test)


def test_feedback_that_is_taken_back_leaves_the_history_and_doing_it_again_changes_nothing(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Service) -> None:
        await suite.http.put("/v1/feedback/ann/i1/like")
        await suite.http.put(RATING, json={"value": 4})
        assert (await suite.http.delete(RATING)).status_code == 204
        with database.read() as connection:
            revision = connection.scalar(select(user_state.c.revision))
        assert (await suite.http.delete(RATING)).status_code == 204
        with database.read() as connection:
            assert connection.scalar(select(user_state.c.revision)) == revision
        assert actions_read(suite) == ["like"]
        assert await suite.items_read("u:ann") == ["i1"]

    run(settings_factory(), database, test)


def test_events_after_a_change_of_feedback_are_appended_to_what_redis_then_holds(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Service) -> None:
        await suite.send(event(1))
        await suite.http.put(RATING, json={"value": 5})
        await suite.http.put(RATING, json={"value": 2})
        await suite.send(event(2))
        assert await suite.items_read("u:ann") == suite.names(suite.stored_history("u:ann"))

    run(settings_factory(), database, test)


def test_the_same_first_feedback_from_two_processes_at_once_makes_one_event(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test() -> None:
        loaded = settings_factory()
        async with service(loaded, database) as one, service(loaded, database) as other:
            calls = [suite.http.put("/v1/feedback/ann/i1/like") for suite in (one, other) * 5]
            answers = await asyncio.gather(*calls)
            assert [answer.status_code for answer in answers] == [200] * 10
            assert await one.items_read("u:ann") == ["i1"]

    asyncio.run(test())
    assert (count(database, events), count(database, feedback)) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/feedback/ann/i1/rating", {}, 422),
        ("/v1/feedback/ann/i1/rating", {"value": "five"}, 422),
        ("/v1/feedback/ann/i1/rating", {"stars": 5}, 422),
        ("/v1/feedback/ann/i1/purr", {}, 422),
    ],
)
def test_feedback_that_means_nothing_is_a_422(
    path: str, body: object, status: int, database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Service) -> None:
        answer = await suite.http.put(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, "validation_failed")

    run(settings_factory(), database, test)


def test_a_deleted_user_gives_no_feedback(database: Database, settings_factory: SettingsFactory) -> None:
    async def test(suite: Service) -> None:
        await suite.send(event(1))
        await suite.http.delete("/v1/users/ann")
        answer = await suite.http.put("/v1/feedback/ann/i1/like")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")

    run(settings_factory(**{"inference.port": 1}), database, test)
