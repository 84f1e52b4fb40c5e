"""Releases that variants serve: opened beside, and met only once all of an experiment's are there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from services.recommender.domain import Query
from services.recommender.experiments.applying import Asked
from services.recommender.experiments.definitions import Status, kill_variant
from services.recommender.experiments.live import Live, LiveExperiment
from services.recommender.serving.enroller import Enroller, Enrolment
from services.recommender.serving.releases import RETRY_S
from services.recommender.serving.variant_releases import VariantReleases
from shared.actions import ActionTable
from shared.contracts.manifest import ModelManifest
from shared.contracts.variant_release import VariantRelease
from shared.schema import Schema
from tests.unit.experiments.written import registered, varying
from tests.unit.recommender.indexes import put_index, put_model
from tests.unit.recommender.serving_app import SCHEMA
from tests.unit.recommender.test_serving_tasks import Shop

ONE = VariantRelease("m-2", "i-22")


class Trial(Shop):
    """A shop whose active release is m-1 with i-1, and the follower of variants beside."""

    def __init__(self, tmp_path: Path, *wanted: VariantRelease, schema: Schema = SCHEMA) -> None:
        super().__init__(tmp_path)
        put_model(self.store, "m-1")
        put_index(self.store, "i-1", model_version="m-1")
        self.promote("r-1", "i-1", "m-1")
        self.inference.versions = {"m-1", "m-2"}
        assert self.look() == "r-1"
        self.wanted = wanted
        self.variants = VariantReleases(
            database=self.threads,
            wanted=lambda: self.wanted,
            store=self.store,
            holder=self.holder,
            inference=self.inference,
            actions=ActionTable.from_schema(schema),
            refresh_s=1.0,
            clock=lambda: self.now,
        )

    def follow(self) -> dict[VariantRelease, tuple[str | None, str | None]]:
        """{asked for: (model, index)} that can be served."""
        asyncio.run(self.variants.look())
        found = self.holder.current().beside
        return {one: (beside.release.model_version, beside.release.index_version) for one, beside in found.items()}


def test_a_variants_release_is_opened_beside_and_served_once_inference_has_its_model(tmp_path: Path) -> None:
    trial = Trial(tmp_path, ONE)
    put_model(trial.store, "m-2")
    put_index(trial.store, "i-22", model_version="m-2")
    trial.inference.versions = {"m-1"}
    assert trial.follow() == {}
    assert "waits for inference" in trial.variants.status
    trial.inference.versions.add("m-2")
    assert trial.follow() == {ONE: ("m-2", "i-22")}
    assert trial.variants.status == "ok"
    state = trial.holder.current()
    varied = trial.holder.serving(state.beside[ONE])
    assert (state.release_name, state.index_version) == ("r-1", "i-1")
    assert (varied.model_version, varied.index_version) == ("m-2", "i-22")
    assert varied.release_name != "r-1", "Redis must not mix what two models made"
    assert varied.catalogue is state.catalogue
    trial.wanted = ()
    assert trial.follow() == {}


def test_what_is_left_out_of_a_release_is_the_active_ones_and_follows_it(tmp_path: Path) -> None:
    behaviour, model = VariantRelease(None, "i-333"), VariantRelease("m-1", None)
    trial = Trial(tmp_path, behaviour, model, VariantRelease(None, "i-22"))
    put_model(trial.store, "m-2")
    put_index(trial.store, "i-22", model_version="m-2")
    put_index(trial.store, "i-333")
    assert trial.follow() == {
        behaviour: ("m-1", "i-333"),
        model: ("m-1", "i-1"),
        VariantRelease(None, "i-22"): ("m-2", "i-22"),
    }
    before = trial.holder.current().beside[behaviour].release.release
    trial.promote("r-2", "i-22", "m-2")
    assert trial.look() == "r-2"
    served = trial.follow()
    assert served[behaviour] == ("m-2", "i-333")
    assert trial.holder.current().beside[behaviour].release.release != before
    assert model not in served
    assert "i-22 was built from model m-2, not m-1" in trial.variants.status


def test_what_cannot_be_served_says_why_and_is_tried_again(tmp_path: Path) -> None:
    trial = Trial(tmp_path, ONE)
    assert trial.follow() == {}
    assert "m-2 with i-22 is refused" in trial.variants.status
    put_model(trial.store, "m-2")
    put_index(trial.store, "i-22", model_version="m-2")
    assert trial.follow() == {}, "hashing a large index again every second would be a load of its own"
    trial.now += RETRY_S
    assert trial.follow() == {ONE: ("m-2", "i-22")}
    trial.threads.down = True
    assert trial.follow() == {ONE: ("m-2", "i-22")}, "while the database is away what is open stays"


def test_a_model_whose_actions_mean_something_else_here_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path, ONE)
    put_model(trial.store, "m-2")
    put_index(trial.store, "i-22", model_version="m-2")
    path = trial.store.folder(ModelManifest, "m-2") / "manifest.json"
    path.write_text(path.read_text().replace('"click"', '"bite"'))
    assert trial.follow() == {}
    assert "bite" in trial.variants.status


def met(trial: Trial, live: LiveExperiment, user: str, left_out: list[str]) -> tuple[Query, Enrolment]:
    picture = Live.of([live], (), SCHEMA.scenes)
    nobody = cast("Any", None)
    enroller = Enroller(
        lambda: picture, nobody, nobody, trial.holder, nobody, nobody, left_out=left_out.append, clock=lambda: 0.0
    )
    query = Query(
        user_key=f"u:{user}", scene="home", weights={"click": 1.0}, count=5, deadline=1.0, now_us=10**15, seed=1
    )
    asked = Asked(0.0, diversity=False, deadline=False)
    return asyncio.run(enroller.enrol(query, user_id=user, visitor_id=None, asked=asked))


def test_until_its_release_is_loaded_an_experiment_exposes_nobody_not_even_to_the_control(tmp_path: Path) -> None:
    trial = Trial(tmp_path, ONE)
    one = registered(variants=varying(release={"model": "m-2", "index": "i-22"}))
    definition = replace(one.definition, status=Status.RUNNING)
    live = LiveExperiment.of(replace(one, definition=definition), SCHEMA)
    left_out: list[str] = []
    users = [f"user-{number}" for number in range(30)]
    for user in users:
        query, enrolment = met(trial, live, user, left_out)
        assert (query.release, enrolment.exposures) == (None, ())
    assert left_out == ["mmr"] * 30
    put_model(trial.store, "m-2")
    put_index(trial.store, "i-22", model_version="m-2")
    trial.now += RETRY_S
    trial.follow()
    variants = set()
    for user in users:
        query, enrolment = met(trial, live, user, left_out)
        (exposure,) = enrolment.exposures
        variants.add(exposure["variant"])
        served = trial.holder.serving(query.release)
        assert served.index_version == {"control": "i-1", "changed": "i-22"}[exposure["variant"]]
    assert variants == {"control", "changed"}
    assert len(left_out) == 30
    query, _ = next(found for user in users if (found := met(trial, live, user, left_out))[0].release is not None)
    trial.wanted = ()
    trial.follow()
    assert trial.holder.serving(query.release).index_version == "i-22", "a request that began with it ends with it"
    killed = kill_variant(definition, "changed")
    assert LiveExperiment.of(replace(one, definition=killed), SCHEMA).releases == frozenset()


@pytest.mark.parametrize(
    "value", ["i-1", {}, {"index": 3}, {"index": "../i-1"}, {"index": ""}, {"index": "i-1", "colour": "red"}, None]
)
def test_what_names_no_release_is_no_setting(value: Any) -> None:
    assert VariantRelease.of(value) is None
