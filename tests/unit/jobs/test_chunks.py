from __future__ import annotations

import pytest

from services.recommender.jobs import asks as packing
from services.recommender.jobs.leases import ChunkState, after_failure, may_lease
from services.recommender.jobs.outputs.made import Made
from services.recommender.jobs.planning import cut, gathered
from services.recommender.jobs.seen import SeenUsers
from services.recommender.jobs.sizing import ChunkSizing
from services.recommender.jobs.store.jobs import add_up
from services.recommender.jobs.users import Page
from services.recommender.jobs.work import SlateAsk
from shared.errors import ConfigurationError
from tests.integration.jobs.world import slate_of

SIZING = ChunkSizing(target_s=4.0, least=10, most=2000, first=200)


def asks(count: int, items: int = 0) -> list[SlateAsk]:
    return [SlateAsk(f"u:{number}", tuple(f"item-{item}" for item in range(items))) for number in range(count)]


def test_a_chunk_is_what_was_done_in_the_target_seconds_within_bounds() -> None:
    assert SIZING.users(None) == 200
    assert SIZING.users(100.0) == 400
    assert SIZING.users(0.1) == 10
    assert SIZING.users(1e6) == 2000


@pytest.mark.parametrize(
    ("users", "attempts", "rate", "failing", "kept"),
    [
        (400, 0, 100.0, 0, 400),
        (500, 0, 100.0, 0, 500),  # a little too large is left alone
        (2000, 0, 100.0, 0, 400),
        (400, 2, 100.0, 1, 200),  # failed twice: halves tell where it lies
        (3, 2, None, 1, 2),
        (1, 4, None, 1, 1),
        (400, 2, 100.0, 64, 400),  # when everything fails, halves would hide it
    ],
)
def test_what_stays_in_a_chunk(users: int, attempts: int, rate: float | None, failing: int, kept: int) -> None:
    assert SIZING.keep(users, attempts, rate, failing) == kept


def test_a_failed_chunk_waits_longer_each_time_and_is_parked_at_last() -> None:
    waits = [after_failure(attempt, 5) for attempt in range(1, 6)]
    assert [one.wait_s for one in waits[:4]] == [1.0, 2.0, 4.0, 8.0]
    assert [one.state for one in waits] == [ChunkState.WAITING] * 4 + [ChunkState.PARKED]
    assert after_failure(90, 100).wait_s == 60.0


def test_a_lease_can_be_had_once_it_is_due_and_never_of_what_is_over() -> None:
    assert may_lease("waiting", 10, 10)
    assert may_lease("leased", 10, 11)
    assert not may_lease("leased", 10, 9)
    assert not may_lease("done", 10, 11)


def test_pieces_hold_everybody_once_and_no_more_than_asked_for() -> None:
    people = asks(25)
    pieces = list(cut(people, 10))
    assert [len(piece) for piece in pieces] == [10, 10, 5]
    assert [one for piece in pieces for one in piece] == people
    long = list(cut(asks(6, items=100), 10, most_bytes=1500))
    assert [len(piece) for piece in long] == [2, 2, 2]
    assert list(cut([], 10)) == []


def test_pages_are_joined_until_they_are_worth_a_chunk_and_the_last_cursor_counts() -> None:
    pages = [Page(asks(3), {"row": number}, ["bad"] if number == 1 else []) for number in range(5)]
    joined = list(gathered(iter(pages), 6))
    assert [(len(page.asks), page.cursor, list(page.refused)) for page in joined] == [
        (6, {"row": 1}, ["bad"]),
        (6, {"row": 3}, []),
        (3, {"row": 4}, []),
    ]
    sparse = [Page([], {"row": number}) for number in range(7)]
    assert [page.cursor for page in gathered(iter(sparse), 6, most_pages=3)] == [{"row": 2}, {"row": 5}, {"row": 6}]


def test_of_a_user_who_comes_twice_the_first_one_counts() -> None:
    with SeenUsers() as seen:
        first = seen.new([SlateAsk("u:a", ("x",)), SlateAsk("u:b"), SlateAsk("u:a", ("y",))])
        assert first == [SlateAsk("u:a", ("x",)), SlateAsk("u:b")]
        assert seen.new([SlateAsk("u:b"), SlateAsk("v:b")]) == [SlateAsk("v:b")]


def test_asks_travel_as_bytes_and_another_format_is_refused() -> None:
    people = asks(3, items=2)
    assert packing.unpack(packing.pack(people)) == people
    with pytest.raises(ConfigurationError):
        packing.unpack(b"\x09" + packing.pack(people)[1:])


def test_the_checksum_of_a_job_does_not_depend_on_its_chunks() -> None:
    slates = [slate_of(one) for one in asks(7)]

    def checksum(*cuts: slice) -> str:
        made = [Made.of(slates[one], release=None, scene="home", made_at_us=1) for one in cuts]
        return add_up([one.checksum() for one in made])

    assert checksum(slice(0, 7)) == checksum(slice(4, 7), slice(0, 4))
    assert checksum(slice(0, 7)) != checksum(slice(0, 6))
