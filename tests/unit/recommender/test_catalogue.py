"""The catalogue in memory: what a reader sees before, while and after rows change; popular and fresh tables over it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.recommender.catalogue import Catalogue
from services.recommender.fresh import FreshTable
from services.recommender.popular import PopularTable
from shared.actions import ActionTable
from tests.unit.recommender.serving_app import SCHEMA, Row, rows

NOW_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000


def made(*given: Row) -> Catalogue:
    catalogue = Catalogue(SCHEMA)
    catalogue.apply(given)
    return catalogue


def servable(catalogue: Catalogue, now_us: int = NOW_US) -> list[int]:
    return np.flatnonzero(catalogue.servable(now_us)).tolist()


def test_hidden_deleted_and_unavailable_items_are_not_servable_and_event_only_items_are() -> None:
    catalogue = made(
        Row(0, "plain"),
        Row(1, "hidden", is_hidden=True),
        Row(2, "deleted", deleted=True),
        Row(3, "not yet", available_from_us=NOW_US + 1),
        Row(4, "since now", available_from_us=NOW_US),
        Row(5, "over", available_until_us=NOW_US),
        Row(6, "still", available_until_us=NOW_US + 1),
        Row(7, "clicked only", known=False),
    )
    assert servable(catalogue) == [0, 4, 6, 7]
    assert catalogue.known().tolist() == [True] * 7 + [False]


def test_indices_that_no_row_had_are_never_servable_and_have_no_name() -> None:
    catalogue = made(Row(3, "three"))
    asked = np.array([0, 2, 3, 4, 1_000_000, 2**31 - 1], np.int32)
    assert catalogue.servable(NOW_US, asked).tolist() == [False, False, True, False, False, False]
    assert (catalogue.size, catalogue.count, catalogue.revision) == (4, 1, 1)
    for unknown in (0, 4, -1):
        with pytest.raises(KeyError):
            catalogue.item_id(unknown)
    assert catalogue.index_of("nobody") is None


def test_a_later_row_replaces_an_earlier_one_whole() -> None:
    catalogue = made(Row(0, "a", 5.0, title="Old", categories=("x", "y"), properties={"brand": "acme"}))
    catalogue.apply([Row(0, "a", None, categories=("z",), revision=7)])
    names = ("item_id", "title", "price", "categories", "brand")
    assert catalogue.properties(0, names) == {
        "item_id": "a", "title": None, "price": None, "categories": ["z"], "brand": None,
    }  # fmt: skip
    assert (catalogue.count, catalogue.revision) == (1, 7)


def test_properties_are_written_as_the_api_shows_them() -> None:
    catalogue = made(Row(0, "a", 5.5, item_type=None, available_from_us=NOW_US + 5, properties={"brand": 7}))
    shown = catalogue.properties(0, ("price", "item_type", "available_from", "available_until", "is_hidden", "brand"))
    assert shown == {
        "price": 5.5, "item_type": None, "available_from": "2023-11-14T22:13:20.000005Z", "available_until": None,
        "is_hidden": False, "brand": None,
    }  # fmt: skip
    assert "colour" not in catalogue.property_names


def test_a_view_taken_before_a_change_keeps_showing_what_it_was_taken_for() -> None:
    catalogue = made(*rows(10))
    before = catalogue.view()
    slots = before.slots(np.arange(10, dtype=np.int32))
    for revision in range(2, 40):
        catalogue.apply([replace(row, price=float(revision), revision=revision) for row in rows(200)])
    assert before.array("price")[slots].tolist() == [float(n) for n in range(10)]
    assert catalogue.column("price").take(np.arange(200, dtype=np.int32)).tolist() == [39.0] * 200


def test_repeated_updates_cost_no_more_than_a_few_times_the_living_rows() -> None:
    catalogue = made(*rows(500))
    for revision in range(2, 60):
        texts = {"brand": f"brand of revision {revision}"}
        catalogue.apply([replace(row, properties=texts, revision=revision) for row in rows(500)])
    assert len(catalogue.view().array("price")) <= 8 * 1024
    assert len(catalogue.column("brand").strings) < 10
    assert catalogue.properties(499, ("brand",)) == {"brand": "brand of revision 59"}


def test_readers_beside_a_writer_never_see_half_a_row() -> None:
    catalogue = made(*(replace(row, price=0.0, title="0") for row in rows(50)))
    everything, ended = np.arange(50, dtype=np.int32), threading.Event()
    torn: list[tuple[float, str]] = []

    def read() -> None:
        while not ended.is_set():
            view = catalogue.view()
            slots = view.slots(everything)
            prices = view.array("price")[slots]
            titles = [view.columns["title"].get(slot) for slot in slots.tolist()]
            torn.extend(pair for pair in zip(prices.tolist(), titles, strict=True) if pair[1] != str(int(pair[0])))

    reader = threading.Thread(target=read)
    reader.start()
    for revision in range(1, 300):
        changed = [replace(row, price=float(revision), title=str(revision), revision=revision) for row in rows(50)]
        catalogue.apply(changed)
    ended.set()
    reader.join()
    assert torn == []


class Daily:
    """Columns of (day, item_index, action, events)."""

    def __init__(self, *given: tuple[int, int, int, int]) -> None:
        columns = np.array(given, np.int64).reshape(-1, 4).T
        self.occurred_day, self.item_index, self.action, self.events = columns


CLICK, PURCHASE, DISLIKE = 2, 5, 7


def popularity(*given: tuple[int, int, int, int], **options: Any) -> PopularTable:
    return PopularTable.from_daily(Daily(*given), ActionTable.from_schema(SCHEMA), 10.0, **options)


def test_popularity_decays_weighs_actions_and_ages_from_the_newest_day_of_the_data() -> None:
    table = popularity((100, 1, CLICK, 8), (110, 2, CLICK, 5), (110, 3, PURCHASE, 5), (90, 3, CLICK, 0))
    assert table.item_index.tolist() == [3, 2, 1]
    assert table.scores(np.array([1, 2], np.int32)) == pytest.approx(
        table.scores(np.array([2, 2], np.int32)) * [0.8, 1]
    )
    later = popularity((1100, 1, CLICK, 8), (1110, 2, CLICK, 5))
    assert later.scores(np.array([1], np.int32)) == table.scores(np.array([1], np.int32))


def test_what_nobody_likes_is_not_popular_and_ties_go_by_index() -> None:
    table = popularity((1, 4, CLICK, 2), (1, 2, CLICK, 2), (1, 9, DISLIKE, 50))
    assert table.top(10).item_index.tolist() == [2, 4]
    assert table.scores(np.array([9, 100], np.int32)).tolist() == [0.0, 0.0]
    assert len(popularity()) == 0


def test_popular_of_a_category_is_in_the_same_order() -> None:
    table = popularity(*((1, n, CLICK, 10 - n) for n in range(6)), catalogue=made(*rows(6)))
    assert table.top(2, "hats").item_index.tolist() == [1, 3]
    assert len(table.top(5, "boats")) == 0


def test_fresh_is_the_newest_servable_of_the_last_days_and_nothing_of_the_future() -> None:
    ages = {0: 1, 1: 0, 2: 20, 3: -1, 4: 2, 5: 3}
    given = [Row(n, f"i{n}", created_at_us=NOW_US - age * DAY_US) for n, age in ages.items()]
    given[4] = replace(given[4], is_hidden=True)
    catalogue = made(*given, Row(6, "clicked only", known=False, created_at_us=NOW_US))
    table = FreshTable.from_catalogue(catalogue)
    for k in (1, 2, 10):
        hits = table.top(k, NOW_US, 14.0, catalogue)
        assert hits.item_index.tolist() == [1, 0, 5][:k]
        assert hits.score.tolist() == pytest.approx([1.0, 1 - 1 / 14, 1 - 3 / 14][:k])


def test_fresh_looks_past_any_number_of_new_items_that_may_not_be_shown() -> None:
    hidden = [Row(n, f"h{n}", is_hidden=True, created_at_us=NOW_US - n) for n in range(100)]
    catalogue = made(*hidden, Row(100, "shown", created_at_us=NOW_US - DAY_US))
    assert FreshTable.from_catalogue(catalogue).top(3, NOW_US, 14.0, catalogue).item_index.tolist() == [100]
