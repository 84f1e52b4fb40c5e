"""The cost model learns what a device costs from what batches took."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.cost_model import CostModel, Load


def device(load: Load, speed: float = 1.0) -> float:
    return speed * (4e-4 + 2e-4 * load.requests + 3e-6 * load.rows + 5e-6 * load.candidates + 4e-9 * load.pairs)


def learned(count: int = 300, *, noise: float = 0.05, speed: float = 1.0, model: CostModel | None = None) -> CostModel:
    random = np.random.default_rng(1)
    model = model or CostModel()
    for _ in range(count):
        load = Load()
        for _ in range(random.integers(1, 6)):
            load = load.plus(int(random.integers(0, 200)), int(random.integers(0, 600)))
        model.observe(load, device(load, speed) * float(1 + noise * random.random()))
    return model


@pytest.mark.parametrize(("rows", "candidates"), [(0, 0), (20, 100), (200, 0), (100, 500), (200, 600)])
def test_what_it_predicts_is_close_to_what_the_device_takes(rows: int, candidates: int) -> None:
    load = Load().plus(rows, candidates)
    assert learned().mean(load) == pytest.approx(device(load), rel=0.25)


def test_its_bound_holds_for_nearly_all_batches() -> None:
    model, random = learned(noise=0.3), np.random.default_rng(2)
    late = 0
    for _ in range(500):
        load = Load().plus(int(random.integers(0, 200)), int(random.integers(1, 600)))
        late += device(load) * (1 + 0.3 * random.random()) > model.predict(load)
    assert late <= 50


def test_before_any_measurement_it_promises_too_little_rather_than_too_much() -> None:
    load = Load().plus(100, 500)
    assert CostModel().predict(load) > device(load)


def test_it_follows_a_device_that_became_slower() -> None:
    model = learned()
    learned(400, speed=2.0, model=model)
    load = Load().plus(100, 400)
    assert model.mean(load) == pytest.approx(device(load, 2.0), rel=0.25)


def test_traffic_of_one_shape_does_not_spoil_what_warm_up_taught_about_others() -> None:
    model = learned()
    model.settle()
    for _ in range(5000):
        load = Load().plus(20, 0)
        model.observe(load, device(load))
    other = Load().plus(200, 500)
    assert model.mean(other) == pytest.approx(device(other), rel=0.4)


def test_one_hiccup_does_not_move_the_mean_much() -> None:
    model, load = learned(), Load().plus(100, 400)
    before = model.mean(load)
    model.observe(load, 100 * device(load))
    assert model.mean(load) == pytest.approx(before, rel=0.2)


sizes = st.integers(0, 3000)


@given(sizes, sizes, sizes, sizes)
def test_more_work_is_never_predicted_to_be_faster(rows: int, candidates: int, more: int, others: int) -> None:
    model = learned(60, noise=0.8)
    base = model.predict(Load().plus(rows, candidates))
    assert model.predict(Load().plus(rows + more, candidates)) >= base
    assert model.predict(Load().plus(rows, candidates + more)) >= base
    assert model.predict(Load().plus(rows, candidates).plus(others, more)) >= base


@given(st.integers(0, 500), st.integers(1, 2000), st.floats(0.0, 0.05))
def test_the_candidates_it_admits_fit_and_one_more_would_not(rows: int, candidates: int, budget_s: float) -> None:
    model = learned(60)
    count = model.candidates_within(Load(), rows, candidates, budget_s)
    assert 0 <= count <= candidates
    if count:
        assert model.predict(Load().plus(rows, count)) <= budget_s + 1e-9
    if count + 2 <= candidates:
        assert model.predict(Load().plus(rows, count + 2)) > budget_s


def true_seconds(load: Load) -> float:
    return 2e-3 + load.rows * 2e-5 + load.candidates * 1e-5


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_prior_that_is_wrong_by_ten_costs_at_most_ten_batches(factor: float) -> None:
    model = CostModel()
    loads = [Load().plus(rows, candidates) for rows in (0, 100, 200) for candidates in (50, 100, 300)]
    for _ in range(20):
        for load in loads:
            model.observe(load, true_seconds(load) * factor)
    for load in [*loads, loads[0]]:
        model.observe(load, true_seconds(load))
    for load in loads:
        assert model.mean(load) == pytest.approx(true_seconds(load), rel=0.3)


def test_what_was_learned_survives_a_restart() -> None:
    model, other = CostModel(), CostModel()
    for rows in range(0, 200, 10):
        load = Load().plus(rows, 100)
        model.observe(load, true_seconds(load))
    assert other.restore(json.loads(json.dumps(model.snapshot())))
    load = Load().plus(50, 100)
    assert (other.predict(load), other.error) == (model.predict(load), model.error)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"weights": [1.0]}, {"gram": "x"}, {"moment": [float("nan")] * 6}, {"ratios": [-1.0]}],
)
def test_a_snapshot_that_cannot_be_leaves_the_model_as_it_was(change: dict[str, object]) -> None:
    model = CostModel()
    before = model.snapshot()
    assert not model.restore({**before, **change})
    assert model.snapshot() == before


def test_a_belief_without_a_part_for_what_comes_now_is_given_up_and_not_multiplied() -> None:
    model = CostModel()
    model.weights = [0.0, 0.0, 0.0, 0.0, 0.001, 0.0]  # all time is the candidates': rankings alone taught it
    ranking, encodes = Load().plus(0, 500, 100), Load()
    for _ in range(8):
        encodes = encodes.plus(100, 0)
    for _ in range(30):
        model.observe(encodes, device(encodes))
        assert model.predict(ranking) < 100 * device(ranking)
    for _ in range(200):
        model.observe(encodes, device(encodes))
        model.observe(ranking, device(ranking))
    assert model.mean(ranking) == pytest.approx(device(ranking), rel=0.25)
    assert model.mean(encodes) == pytest.approx(device(encodes), rel=0.25)


def test_a_kept_belief_of_hours_a_request_is_not_taken_up_again() -> None:
    model = learned()
    damaged = {**model.snapshot(), "weights": [0.0, 0.0, 0.0, 0.0, 355374.7, 0.0]}
    fresh = CostModel()
    assert not fresh.restore(damaged)
    assert fresh.weights == CostModel().weights
