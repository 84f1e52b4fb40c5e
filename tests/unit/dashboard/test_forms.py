"""The create form: what it makes, and how it marks what is wrong."""

from __future__ import annotations

import pytest

from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.dashboard.drafts import DEFAULTS, FormFaults, place, read
from services.recommender.experiments.dashboard.i18n import Catalogue
from services.recommender.experiments.registered import Plan
from shared.errors import FieldError, ValidationFailed
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
    error = ValidationFailed("no", errors=[FieldError(one, one) for one in (*pointers, "/forced")])
    by_field, general = place(error)
    assert set(by_field) == {"primary", "settings_2", "variants", "weight_1", "guardrails"}
    assert general == ["/forced"]
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
