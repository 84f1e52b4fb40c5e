"""The create form: what it makes, and how it marks what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.dashboard.drafts import (
    DEFAULTS,
    HOLDOUT_DEFAULTS,
    FormFaults,
    place,
    read,
    write,
)
from services.recommender.experiments.dashboard.i18n import Catalogue
from services.recommender.experiments.definitions import Experiment, HoldOut, Status, Variant
from services.recommender.experiments.registered import Plan
from shared.errors import FieldError, ValidationFailed
from tests import dashboard_example as example
from tests.dashboard_app import FakePort
from tests.unit.dashboard.test_access import ORIGIN, fields, opened

pytestmark = pytest.mark.anyio
NEW = "/dashboard/new"
FILLED = {**DEFAULTS, "key": "more-variety", "hypothesis": "More clicks", "owner": "Ann"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_filled_form_is_an_experiment() -> None:
    made = read(
        {
            **FILLED, "settings_2": '{"diversity": 0.4}', "guardrails": "revenue = 0.02\n\nempty=0.01",
            "scenes": "home，cart",
            "namespace": "home", "namespace_range": "0 0.5", "secondary": "watch_time, conversion", "currency": "cny",
        },
        Catalogue("en"),
    )  # fmt: skip
    assert made.definition.variants[1].settings == {"diversity": 0.4}
    assert made.definition.namespace == Namespace("home", 0.0, 0.5)
    assert made.plan == Plan(secondary=("watch_time", "conversion"), guardrails={"revenue": 0.02, "empty": 0.01})
    assert (made.scenes, made.currency, made.targeting) == (("home", "cart"), "CNY", None)


def test_all_that_cannot_be_read_is_named_at_once() -> None:
    wrong = {
        **FILLED, "key": "a b", "owner": " ", "weight_1": "half", "settings_2": "[1]", "guardrails": "revenue",
        "namespace": "x", "time_zone": "Mars/Base", "coverage": "",
    }  # fmt: skip
    with pytest.raises(FormFaults) as raised:
        read(wrong, Catalogue("zh"))
    assert set(raised.value.by_field) == {
        "key", "owner", "weight_1", "settings_2", "guardrails", "namespace_range", "time_zone", "coverage",
    }  # fmt: skip
    assert raised.value.by_field["coverage"] == "不是数字"


def test_faults_of_the_registry_go_to_their_fields() -> None:
    pointers = ("/plan/primary", "/variants/1/settings/depth", "/variants", "/weights", "/plan/guardrails/revenue")
    error = ValidationFailed("no", errors=[FieldError(one, one) for one in (*pointers, "/colour")])
    by_field, general = place(error)
    assert set(by_field) == {"primary", "settings_2", "variants", "weight_1", "guardrails"}
    assert general == ["/colour"]
    assert place(ValidationFailed("all of it")) == ({}, ["all of it"])


async def test_a_draft_is_created_and_shown() -> None:
    port = FakePort()
    async with opened(port) as client:
        form = await fields(client, NEW)
        answer = await client.post(NEW, data={**FILLED, **form}, headers=ORIGIN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/experiments/more-variety")
    assert port.entries["more-variety"][0].actor == "local"


async def test_a_refused_form_comes_back_as_it_was_with_its_faults_marked() -> None:
    async with opened() as client:
        form = await fields(client, NEW)
        wrong = {**FILLED, **form, "hypothesis": "<b>kept</b>", "weight_2": "0.9", "time_zone": "Mars"}
        unread = await client.post(NEW, data=wrong, headers=ORIGIN)
        assert unread.status_code == 422
        assert "&lt;b&gt;kept&lt;/b&gt;" in unread.text
        assert 'id="e-time_zone"' in unread.text
        assert "<details open>" in unread.text
        unfit = await client.post(NEW, data={**wrong, "time_zone": "UTC"}, headers=ORIGIN)
        assert unfit.status_code == 422
        assert "sum to 1.4" in unfit.text
        assert 'id="e-weight_1"' in unfit.text
        taken = await client.post(NEW, data={**FILLED, **form, "key": "diverse-home"}, headers=ORIGIN)
        assert taken.status_code == 409
        assert 'id="e-key"' in taken.text


async def test_what_is_no_form_is_a_page_that_says_so() -> None:
    async with opened() as client:
        json = await client.post(NEW, json={}, headers=ORIGIN)
        many = await client.post(NEW, data={str(n): "x" for n in range(200)}, headers=ORIGIN)
        assert (json.status_code, many.status_code) == (400, 400)
        assert "text/html" in json.headers["content-type"]


@pytest.mark.parametrize(
    ("action", "more", "key"),
    [
        ("start", {}, "longer-slates"),
        ("stop", {}, "diverse-home"),
        ("ship", {"variant": "diverse"}, "diverse-home"),
        ("roll_back", {}, "bts-against-random"),
        ("kill", {"variant": "diverse"}, "diverse-home"),
    ],
)
async def test_each_change_is_asked_before_it_is_done(action: str, more: dict[str, str], key: str) -> None:
    port = FakePort()
    async with opened(port) as client:
        path = f"/dashboard/experiments/{key}/{action}"
        before = len(port.entries.get(key, []))
        form = await fields(client, f"{path}?variant=diverse", **more)
        assert len(port.entries.get(key, [])) == before
        assert (await client.post(path, data=form, headers=ORIGIN)).status_code == 303
    assert port.entries[key][0].action == {"kill": "kill_variant"}.get(action, action)
    assert len(port.entries[key]) == before + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"forced": {"a=b": "v1", "bob": "v2"}, "hash_version": 1, "seed": "s"},
        {"variants": tuple(Variant(f"v{n}", 1 / 7, {"diversity": n / 10}) for n in range(7))},
        {"namespace": None, "variants": (Variant("v1", 0.1), Variant("v2", 0.9)), "holdout": HoldOut("home", 10**15)},
    ],
)
def test_the_form_of_a_draft_makes_the_same_draft_again(changes: dict[str, Any]) -> None:
    variants = (Variant("v1", 0.25, {"rules": "price > 1"}), Variant("v2", 0.75))
    draft = replace(
        example.experiment("longer-slates", Status.DRAFT),
        definition=Experiment(**{"key": "longer-slates", "variants": variants, "coverage": 0.3, **changes}),
        created_at_us=0,
        updated_at_us=0,
    )
    assert read(write(draft), Catalogue("en"), draft) == draft


async def test_a_draft_is_edited_and_what_runs_is_not() -> None:
    port = FakePort()
    path = "/dashboard/experiments/longer-slates/edit"
    async with opened(port) as client:
        form = await fields(client, path)
        sent = {**write(port.experiments["longer-slates"]), **form, "owner": "Bo", "forced": "ann = diverse"}
        unread = await client.post(path, data={**sent, "forced": "ann"}, headers=ORIGIN)
        assert (unread.status_code, 'id="e-forced"' in unread.text) == (422, True)
        assert (await client.post(path, data=sent, headers=ORIGIN)).status_code == 303
        again = await client.post(path, data=sent, headers=ORIGIN)
        assert again.status_code == 409, "it was changed since the form was shown"
        assert (await client.get("/dashboard/experiments/diverse-home/edit")).status_code == 409
    after = port.experiments["longer-slates"]
    assert (after.owner, dict(after.definition.forced)) == ("Bo", {"ann": "diverse"})
    assert (port.entries["longer-slates"][0].action, port.entries["longer-slates"][0].actor) == ("edit", "local")


async def test_new_weights_begin_a_phase() -> None:
    port = FakePort()
    path = "/dashboard/experiments/diverse-home/phase"
    async with opened(port) as client:
        form = await fields(client, path)
        sent = {**form, "weight_0": "0.1", "weight_1": "0.9", "coverage": "1", "redraw": "1", "keep_out": "1"}
        for wrong in ({"weight_1": "half"}, {"weight_1": "0.5"}, {"coverage": "2"}):
            refused = await client.post(path, data={**sent, **wrong}, headers=ORIGIN)
            assert (refused.status_code, "alarm blocking" in refused.text) == (422, True)
        assert port.experiments["diverse-home"].definition.phase == 0
        assert (await client.post(path, data=sent, headers=ORIGIN)).status_code == 303
        assert (await client.post(path, data=sent, headers=ORIGIN)).status_code == 409
        assert (await client.get("/dashboard/experiments/longer-slates/phase")).status_code == 409
    after = port.experiments["diverse-home"].definition
    assert [one.weight for one in after.variants] == [0.1, 0.9]
    assert (after.phase, after.first_open_phase, after.seed) == (1, 1, "diverse-home-1")
    assert port.entries["diverse-home"][0].action == "new_phase"


async def test_a_holdout_is_created_listed_and_reported_as_what_it_is() -> None:
    port = FakePort()
    filled = {**HOLDOUT_DEFAULTS, "key": "winter", "hypothesis": "All of it pays", "owner": "Ann"}
    async with opened(port) as client:
        form = await fields(client, f"{NEW}?holdout=1")
        nameless = await client.post(NEW, data={**filled, **form, "holdout": "namespace"}, headers=ORIGIN)
        assert (nameless.status_code, 'id="e-namespace"' in nameless.text) == (422, True)
        ended = {**filled, **form, "holdout_ends": "2027-01-01T00:00:00Z"}
        assert (await client.post(NEW, data=ended, headers=ORIGIN)).status_code == 303
        made = port.experiments["winter"]
        assert made.definition.holdout == HoldOut(None, 1_798_761_600_000_000)
        assert [(one.key, one.weight) for one in made.definition.variants] == [("held_out", 0.05), ("rest", 0.95)]
        port.experiments["winter"] = replace(made, definition=replace(made.definition, status=Status.RUNNING))
        port.reports["winter"] = replace(example.report("winter"), holdout=True)
        assert '<span class="badge idle">holdout</span>' in (await client.get("/dashboard")).text
        page = (await client.get("/dashboard/experiments/winter")).text
    assert "What was shipped together made things better" in page
    assert "every experiment" in page
    assert "/winter/ship" not in page
    assert "/winter/kill" not in page
