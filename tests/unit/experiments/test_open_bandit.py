"""BTS from the random log: right where the truth is known, refused where the logs do not overlap."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.cli.open_bandit.command import as_dict
from services.recommender.experiments.open_bandit.arms import key_of, registered, rows_of
from services.recommender.experiments.open_bandit.evaluation import evaluate
from services.recommender.experiments.open_bandit.log import BanditLog, Campaign, Policy, file_of, read_log
from services.recommender.experiments.open_bandit.policies import action_frequency
from shared.errors import ValidationFailed
from tests.unit.experiments.bandit_logs import GREEDY, ITEMS, PLACES, UNIFORM, VALUE, drawn, write


def test_all_three_estimates_and_the_log_itself_find_the_known_value() -> None:
    found = evaluate(drawn(UNIFORM, 10_000, 1), drawn(GREEDY, 10_000, 2))
    assert found.overlap.refused is None
    assert [one.method for one in found.estimates] == ["ipw", "snips", "dr"]
    for one in found.estimates:
        assert one.low_both < VALUE < one.high_both
        assert one.value.low < VALUE < one.value.high
        assert one.low_both < one.value.estimate < one.high_both
    assert found.on_policy_low < VALUE < found.on_policy_high


def test_the_interval_that_redraws_both_logs_covers_where_the_plain_one_need_not() -> None:
    held = {"ipw": 0, "snips": 0, "dr": 0}
    runs = 60
    for run in range(runs):
        found = evaluate(drawn(UNIFORM, 2_000, 2 * run), drawn(GREEDY, 500, 2 * run + 1), seed=run)
        for one in found.estimates:
            held[one.method] += one.low_both <= VALUE <= one.high_both
    for covered in held.values():
        assert covered / runs > 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_the_policy_is_how_often_it_acts_and_not_what_it_wrote_down() -> None:
    """A Thompson sampler's propensities change from hour to hour; their mean over the rows of an item is too high."""
    log = drawn(GREEDY, 50_000, 3)
    log = replace(log, propensity=np.minimum(log.propensity * 1.5, 1.0))
    frequency = action_frequency(log, ITEMS, PLACES)
    assert frequency.sum(axis=0) == pytest.approx(1)
    assert np.abs(frequency - GREEDY).max() < 0.02


def test_a_place_that_the_policy_never_filled_is_refused() -> None:
    log = drawn(GREEDY, 100, 4)
    kept = log.place < 2
    partial = BanditLog(log.item[kept], log.place[kept], log.click[kept], log.propensity[kept], log.at_us[kept])
    with pytest.raises(ValidationFailed, match=r"no rows at places \[2\]"):
        evaluate(drawn(UNIFORM, 100, 5), partial)


def test_a_hopeless_overlap_is_refused_with_the_reason_and_no_number() -> None:
    """The logging policy shows item 0 in one of 400 slots, the other one always."""
    rare = np.full((ITEMS, PLACES), (1 - 1 / 400) / (ITEMS - 1))
    rare[0] = 1 / 400
    always = np.zeros((ITEMS, PLACES))
    always[0] = 1.0
    found = evaluate(drawn(rare, 10_000, 6), drawn(always, 1_000, 7))
    assert found.overlap.refused is not None
    assert "rows are worth" in found.overlap.refused
    told = as_dict(Campaign.ALL, found)
    assert told["refused"] == found.overlap.refused
    assert {value for one in told["estimates"].values() for value in one.values()} == {None}
    assert told["on_policy"]["click_rate"] == found.on_policy


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = drawn(GREEDY, 50, 8)
    write(tmp_path, Campaign.MEN, {Policy.BTS: log})
    read = read_log(tmp_path, Policy.BTS, Campaign.MEN)
    for name in ("item", "place", "click", "propensity", "at_us"):
        assert getattr(read, name).tolist() == getattr(log, name).tolist(), name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a,b\n1,2\n", "lacks the columns timestamp"),
        ("timestamp,item_id,position,click,propensity_score\n", "holds no rows"),
        ("timestamp,item_id,position,click,propensity_score\nnow,1,1,0,0.1\n", "cannot be read"),
    ],
)
def test_another_file_is_refused_in_words(tmp_path: Path, content: str, reason: str) -> None:
    path = file_of(tmp_path, Policy.RANDOM, Campaign.ALL)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValidationFailed, match=reason):
        read_log(tmp_path, Policy.RANDOM, Campaign.ALL)
    with pytest.raises(ValidationFailed, match="download the sample"):
        read_log(tmp_path, Policy.BTS, Campaign.ALL)


def test_each_impression_is_a_unit_with_one_exposure_one_slate_and_its_click() -> None:
    log = drawn(GREEDY, 200, 9)
    rows = list(rows_of(Campaign.WOMEN, Policy.BTS, log, list(range(100, 100 + ITEMS)), 1, 2))
    assert len({exposure["unit"] for exposure, *_ in rows}) == 200
    for row, (exposure, slate, happened) in enumerate(rows):
        assert exposure["experiment"] == slate["experiment"] == key_of(Campaign.WOMEN)
        assert exposure["variant"] == slate["variant"] == "bts"
        assert len(happened) == 1 + log.click[row]
        assert {event["recommendation_id"] for event in happened} == {slate["recommendation_id"]}
        assert happened[0]["impression"] == [f"obd-women-{log.item[row]}"]
        assert [event["item_index"] for event in happened[1:]] == [100 + log.item[row]] * int(log.click[row])


def test_the_experiment_is_stopped_has_the_random_policy_as_control_and_spans_the_logs() -> None:
    logs = {Policy.RANDOM: drawn(UNIFORM, 300, 10), Policy.BTS: drawn(GREEDY, 100, 11)}
    found = registered(Campaign.ALL, logs)
    assert found.definition.status == "stopped"
    assert [(one.key, one.weight) for one in found.definition.variants] == [("random", 0.75), ("bts", 0.25)]
    assert found.started_at_us == logs[Policy.RANDOM].at_us[0]
    assert found.stopped_at_us == logs[Policy.RANDOM].at_us[-1]
