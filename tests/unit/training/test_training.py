from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.model.config import ModelConfig
from services.inference.training.content import Content, schema_hash
from services.inference.training.dataset import Sequences, epoch_windows, length_buckets, pack
from services.inference.training.evaluation import Quality, evaluate, popularity_scorer
from services.inference.training.loop import Progress, train
from services.inference.training.losses import candidate_loss, full_softmax, sampled_softmax
from services.inference.training.plan import NextItemPlan, RankingPlan, TrainingPlan, preset
from services.inference.training.schedule import Schedule
from shared.errors import ConfigurationError, SilkrecError
from shared.schema import Schema
from tests.unit.training.synthetic import ITEMS, Events, walks

SMALL: dict[str, Any] = {
    "d_model": 16,
    "n_layers": 1,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "intermediate_size": 32,
    "max_history": 16,
}
PLAN = TrainingPlan(
    next_item=NextItemPlan(epochs=60, batch_rows=512, learning_rate=1e-2, ema_decay=0.95),
    ranking=RankingPlan(epochs=2, batch_rows=512, positions=4, negatives=7),
    architecture=SMALL,
    max_seconds=60.0,
    min_positives=10,
)


def no_content(config: ModelConfig) -> Content:
    return Content.none(vocabulary=config.vocabulary, width=config.content_tokens)


def test_what_repeats_is_learnt_and_beats_popularity_by_far() -> None:
    told: list[Progress] = []
    trained = train(walks(), no_content, PLAN, {1: 1.0, 2: 1.0}, told.append, vocabulary=ITEMS)
    metrics = trained.metrics
    assert metrics["ndcg_at_10"] > 0.6
    assert metrics["retrieval_ndcg_at_10"] > 0.6
    assert metrics["ndcg_at_10"] > 2 * metrics["popular_ndcg_at_10"]
    assert trained.actions == (1, 2)
    assert {row.phase for row in told} == {"next item", "ranking", "measuring"}
    assert all(row.eta_s <= PLAN.max_seconds for row in told)
    assert [row.metrics for row in told if row.metrics is not None] == [metrics] == [told[-1].metrics]


def test_training_never_reads_the_event_that_it_is_measured_on() -> None:
    """Two sets of events that differ in each user's last item alone give the same weights."""
    first, second = walks(), walks()
    last = np.flatnonzero(np.diff(second.user, append=-1))
    second.item[last] = 1
    plan = replace(PLAN, next_item=replace(PLAN.next_item, epochs=2), max_seconds=600.0)
    made = [
        train(events, no_content, plan, {1: 1.0}, lambda _row: None, vocabulary=ITEMS).ranker.state_dict()
        for events in (first, second)
    ]
    for name, tensor in made[0].items():
        torch.testing.assert_close(tensor, made[1][name], msg=name)


def test_a_seed_gives_the_same_model_again() -> None:
    plan = replace(PLAN, next_item=replace(PLAN.next_item, epochs=1), max_seconds=600.0)
    vectors = [
        train(walks(), no_content, plan, {1: 1.0}, lambda _row: None, vocabulary=ITEMS).ranker.item_vectors()
        for _ in range(2)
    ]
    torch.testing.assert_close(vectors[0], vectors[1])


def test_too_few_events_are_refused_with_what_is_needed() -> None:
    with pytest.raises(SilkrecError, match="at least 100"):
        train(walks(users=4, length=5), no_content, PLAN, {1: 1.0}, lambda _row: None, vocabulary=ITEMS)


def test_the_split_holds_out_the_last_event_or_the_one_before() -> None:
    events = Events(
        np.array([0, 0, 0, 0, 1], np.int32),
        np.array([5, 6, 7, 8, 9], np.int32),
        np.ones(5, np.int8),
        np.arange(5, dtype=np.int64),
    )
    test, validation = Sequences.of(events, "test"), Sequences.of(events, "validation")
    assert test.item[test.end[0]] == 8
    assert validation.item[validation.end[0]] == 7
    assert test.held.tolist() == [True, False]  # a user with one event has nothing to hold out
    assert (test.rows, validation.rows) == (4, 3)


def test_every_row_but_the_last_predicts_its_successor_once_an_epoch() -> None:
    data = Sequences.of(walks(users=30, length=50), "test")
    rng = np.random.default_rng(0)
    windows = epoch_windows(data, 16, rng)
    seen: list[int] = []
    for batch in length_buckets(windows, 256, rng):
        _, rows = pack(data, batch, torch.device("cpu"))
        seen += rows.tolist()
    expected = [row for start, end in zip(data.start, data.end, strict=True) for row in range(start, end - 1)]
    assert sorted(seen) == expected


def test_ranks_become_hits_and_gains() -> None:
    quality = Quality.of_ranks(np.array([0, 1, 9, 10]))
    assert quality.hr_at_10 == 0.75
    assert quality.ndcg_at_10 == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(11)) / 4)


def test_seen_items_are_left_out_and_ties_count_by_half() -> None:
    events = Events(
        np.zeros(3, np.int32), np.array([1, 2, 3], np.int32), np.ones(3, np.int8), np.arange(3, dtype=np.int64)
    )
    data = Sequences.of(events, "test")
    # 1 and 2 were seen; 4, 5 and 6 tie with the held-out 3: rank 1 of 0, 1, 2, 3.
    scores = np.array([[0, 9, 9, 5, 5, 5, 5]], np.float32)
    quality = evaluate(data, 7, lambda _users: scores)
    assert quality.ndcg_at_10 == pytest.approx(1 / np.log2(3))
    assert popularity_scorer(data, 7)(np.array([0]))[0].tolist() == [0, 1, 1, 0, 0, 0, 0]


def test_the_sliced_softmax_is_cross_entropy_with_its_gradient() -> None:
    torch.manual_seed(0)
    states = torch.randn(1500, 8, requires_grad=True)
    vectors = torch.randn(30, 8, requires_grad=True)
    target = torch.randint(30, (1500,))
    own = full_softmax(states, vectors, target, 0.1)
    own.backward()  # type: ignore[no-untyped-call]
    gradients = [states.grad, vectors.grad]
    states.grad = vectors.grad = None
    loss = torch.nn.functional.cross_entropy(states @ vectors.T, target, label_smoothing=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own, loss)
    for got, wanted in zip(gradients, [states.grad, vectors.grad], strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_sampled_softmax_never_counts_the_target_as_its_own_negative() -> None:
    states, vectors = torch.eye(3), 5 * torch.eye(3)
    target = torch.arange(3)
    loss = sampled_softmax(states, vectors, target, torch.tensor([0, 1, 2]), torch.zeros(3))
    expected = torch.log(torch.exp(torch.tensor(5.0)) + 2) - 5
    torch.testing.assert_close(loss, expected)


def test_a_positive_counts_for_the_head_of_its_own_action() -> None:
    logits = torch.full((1, 2, 2), -8.0)
    heads, action = torch.tensor([1, 2]), torch.tensor([2])
    right, wrong = logits.clone(), logits.clone()
    right[0, 0, 1] = 8.0
    wrong[0, 0, 0] = 8.0
    assert candidate_loss(right, action, heads, 0.0) < 0.01 < candidate_loss(wrong, action, heads, 0.0)


def test_a_schedule_ends_in_time_whatever_a_step_costs() -> None:
    now = [0.0]
    schedule = Schedule(steps=10_000, deadline=10.0, clock=lambda: now[0])
    while not schedule.finished:
        now[0] += 0.7
        schedule.advance()
    assert 8.0 <= now[0] <= 10.0
    assert schedule.rate() < 0.2
    assert schedule.bound_by_time


def test_content_is_categories_features_and_words_that_items_share() -> None:
    schema = Schema.model_validate(
        {"item_fields": {"brand": {"type": "string", "feature": True}, "year": {"type": "number", "feature": True}}}
    )
    items = [
        SimpleNamespace(item_index=1, title="Red shoe", categories=["shoes"], properties={"brand": "a", "year": 1999}),
        SimpleNamespace(item_index=2, title="Blue shoe", categories=["shoes"], properties={"brand": "a", "year": 2005}),
        SimpleNamespace(item_index=9, title=None, categories=["hats"], properties={}),
    ]
    content = Content.of(items, schema, vocabulary=3, width=4, most=100)
    assert set(content.tokens) == {"category=shoes", "brand=a", "title=shoe"}
    assert content.table.shape == (4, 4)
    assert (content.table[1] == content.table[2]).all()
    assert content.table[[0, 3]].sum() == 0
    narrow = Content.of(items, schema, vocabulary=3, width=1, most=100)
    assert narrow.tokens[int(narrow.table[1, 0]) - 1] == "category=shoes"
    assert schema_hash(schema) != schema_hash(Schema())


def test_presets_are_looked_up_by_name_and_bounded() -> None:
    plan = preset("moe", epochs=3, max_seconds=7.0)
    assert (plan.next_item.epochs, plan.max_seconds, plan.architecture["ffn"]) == (3, 7.0, "moe")
    with pytest.raises(ConfigurationError, match="small, moe"):
        preset("large")
