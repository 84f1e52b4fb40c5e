"""An experiment from its creation to its shipping: a real browser, the real API, simulated users of known taste."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import Watched
from tests.e2e.suite import Suite, until

pytestmark = pytest.mark.e2e
KEY = "diverse-home"
USERS, REQUESTS = 240, 900


def confirmed(page: Page, action: str, variant: str | None = None) -> None:
    """Follows the link, and says yes on the page behind it."""
    page.get_by_role("link", name=action, exact=True).click()
    page.wait_for_url(f"**/{action.lower()}")
    if variant is not None:
        page.get_by_label(variant).check()
    page.get_by_role("button", name=action).click()
    page.wait_for_url(f"**/experiments/{KEY}")


def create(page: Page) -> None:
    fields = {
        "Name (required)": KEY,
        "Hypothesis (required)": "A varied slate is clicked more: people tire of near-duplicates",
        "Owner (required)": "Ann",
        "Settings 1 (JSON)": '{"diversity": 0.0}',
        "Settings 2 (JSON)": '{"diversity": 0.9}',
    }
    for label, text in fields.items():
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name="Create the draft").click()
    page.get_by_role("heading", name=KEY).wait_for()


def ctr(results: dict[str, Any]) -> dict[str, Any]:
    metric = next(one for one in results["metrics"] if one["metric"] == "ctr")
    cell: dict[str, Any] = next(one for one in metric["cells"] if one["variant"] == "treatment")
    return cell


def test_two_diversity_settings_from_creation_to_shipping_with_the_true_effect_inside_the_interval(
    suite: Suite, browser: Browser
) -> None:
    watched = Watched(browser, suite.url, viewport={"width": 1280, "height": 900})
    page = watched.open("/dashboard/new")
    create(page)
    confirmed(page, "Start")
    until(lambda: suite.recommend("u1")["experiments"], "slates of the experiment")

    simulated = suite.silkrec(
        "simulate", "--experiment", KEY, "--control", "control", "--users", str(USERS), "--requests", str(REQUESTS),
        "--rate", "0", "--seed", "3",
    )  # fmt: skip
    assert simulated["lost_events"] == 0
    true = simulated["effects"]["treatment"]["true"]["lift"]
    served = {name: simulated["variants"][name]["users"] for name in ("control", "treatment")}

    def counted() -> bool:
        suite.silkrec("experiments", "build", KEY)
        found = suite.http.get(f"/v1/experiments/{KEY}/results").json()
        # u1 looked too, before the simulation.
        units: int = sum(one["units"] for one in found["variants"])
        return bool(units == sum(served.values()) + 1)

    until(counted, "every exposure in the results")
    found = suite.http.get(f"/v1/experiments/{KEY}/results").json()
    cell = ctr(found)
    assert found["simulated"]
    assert cell["sequential"]["low"] <= true <= cell["sequential"]["high"]
    quality = {row["variant"]: row for row in found["quality"]}
    assert quality["treatment"]["ild"] > quality["control"]["ild"]

    page = watched.open(f"/dashboard/experiments/{KEY}")
    assert page.get_by_text("imulated").first.is_visible()
    assert watched.faults() == []
    watched.shoot("e2e-experiment")
    confirmed(page, "Stop")
    confirmed(page, "Ship", "treatment")
    assert page.get_by_role("link", name="Roll back").is_visible()
    watched.shoot("e2e-shipped")
    until(lambda: not suite.recommend("u1")["experiments"], "slates without the experiment")
    actions = [one["action"] for one in suite.http.get(f"/v1/experiments/{KEY}/audit").json()["items"]]
    assert actions == ["ship", "stop", "start", "create"]

    page = watched.open("/dashboard/users/u1")
    assert page.get_by_role("heading", name="Newest slate").is_visible()
    watched.shoot("e2e-user")
    assert watched.faults() == []
    assert watched.elsewhere == []
    assert watched.errors == []
    watched.context.close()
    suite.http.post(f"/v1/experiments/{KEY}:roll_back").raise_for_status()
