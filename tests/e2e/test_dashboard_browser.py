"""The dashboard in a real browser: what it loads, what it draws, and who can use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.dashboard_app import FakePort, application
from tests.e2e.browser import Watched
from tests.http_server import listening

pytestmark = pytest.mark.e2e
INK = """() => {
    const chart = document.querySelector("[data-chart] .main-svg");
    const ink = getComputedStyle(chart.querySelector("text")).fill;
    return {page: getComputedStyle(document.body).backgroundColor, chart: ink, width: chart.clientWidth};
}"""
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 780}, "is_mobile": True, "has_touch": True}
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {**DESK, "color_scheme": "light"},
    "dark": {**DESK, "color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
    "phone-dark": {**PHONE, "color_scheme": "dark"},
    "zh": {**DESK, "locale": "zh-CN"},
}
PAGES = {
    "list": "/dashboard",
    "experiment": "/dashboard/experiments/diverse-home",
    "blocked": "/dashboard/experiments/new-ranker",
    "draft": "/dashboard/experiments/longer-slates",
    "holdout": "/dashboard/new?holdout=1",
    "phase": "/dashboard/experiments/diverse-home/phase",
    "ship": "/dashboard/experiments/diverse-home/ship",
    "user": "/dashboard/users/ann",
    "error": "/dashboard/experiments/nowhere",
}


@pytest.fixture
def base() -> Iterator[str]:
    with listening(application(FakePort())) as url:
        yield url


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is_usable_by_everybody_and_loads_nothing_from_elsewhere(
    browser: Browser, base: str, look: str
) -> None:
    watched = Watched(browser, base, **LOOKS[look])
    faults: dict[str, list[str]] = {}
    for name, path in PAGES.items():
        watched.open(path)
        faults[name] = watched.faults()
        watched.shoot(f"{name}-{look}")
    watched.context.close()
    assert {name: found for name, found in faults.items() if found} == {}
    assert watched.elsewhere == []
    # Chromium writes the 404 of the error page down as an error too.
    assert [error for error in watched.errors if "404" not in error] == []


def test_the_accessibility_checks_find_what_is_planted(browser: Browser, base: str) -> None:
    watched = Watched(browser, base, **DESK)
    page = watched.open("/dashboard")
    page.evaluate("""() => {
        document.querySelector("main").insertAdjacentHTML("beforeend", `<h4>Late</h4><input name="bare">
            <img src="icon.svg"><table><tr><th>x</th></tr></table><p class="note" id="pale">pale</p>
            <div role="img"></div><a href="/x"></a>`);
        document.getElementById("pale").style.color = "#bbb";
        document.documentElement.lang = "";
    }""")
    found = " ".join(watched.faults())
    for fault in (
        "html-has-lang", "heading-order", "label bare", "image-alt", "table-caption", "th-scope", "color-contrast",
        "unnamed div", "name <a",
    ):  # fmt: skip
        assert fault in found
    watched.context.close()


def test_the_charts_are_drawn_under_the_strict_policy(browser: Browser, base: str) -> None:
    watched = Watched(browser, base, **DESK)
    page = watched.open("/dashboard/experiments/diverse-home")
    assert page.locator(".chart .main-svg").count() >= 3
    assert page.locator(".chart .legend").count() >= 1
    assert watched.errors == []
    watched.context.close()


def test_without_javascript_every_table_is_there(browser: Browser, base: str) -> None:
    watched = Watched(browser, base, java_script_enabled=False)
    watched.page.goto(base + "/dashboard/experiments/diverse-home")
    assert watched.page.get_by_text("+4.87 %").first.is_visible()
    watched.page.get_by_text("Cumulative lift as a table").click()
    assert watched.page.get_by_role("row", name="16 Nov 2026").first.is_visible()
    watched.context.close()


def test_an_experiment_is_created_started_stopped_and_shipped_with_the_keyboard_alone(
    browser: Browser, base: str
) -> None:
    watched = Watched(browser, base, **DESK)
    page = watched.open("/dashboard/new")
    for label, text in (("Name (required)", "two-sources"), ("Hypothesis (required)", "More sources, more clicks")):
        page.get_by_label(label, exact=True).focus()
        page.keyboard.type(text)
    page.keyboard.press("Tab")
    page.keyboard.type("Ann")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="two-sources").wait_for()
    for action in ("Start", "Stop", "Ship"):
        page.get_by_role("link", name=action, exact=True).focus()
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{action.lower()}")
        if action == "Ship":
            page.get_by_label("treatment").focus()
            page.keyboard.press("Space")
        page.get_by_role("button", name=action).focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/experiments/two-sources")
    assert page.get_by_role("link", name="Roll back").is_visible()
    assert page.get_by_role("cell", name="local").count() == 4
    watched.context.close()


def test_what_is_printed_is_dark_on_white_and_not_cut_off_whatever_the_screen_is(browser: Browser, base: str) -> None:
    watched = Watched(browser, base, **{**DESK, "color_scheme": "dark"})
    page = watched.open(PAGES["experiment"])
    on_screen = page.evaluate(INK)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    on_paper = page.evaluate(INK)
    assert (on_screen["page"], on_paper["page"]) == ("rgb(16, 22, 21)", "rgb(255, 255, 255)")
    assert on_screen["chart"] != on_paper["chart"] == "rgb(23, 33, 31)"
    assert on_paper["width"] <= 660, "A4 and Letter have no more"
    assert watched.errors == []
    watched.context.close()
