"""Debian's Chromium under Playwright. Nothing is downloaded, and whatever leaves this machine is written down."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import Missing

SCREENSHOTS = Path("var/screenshots")
ACCESSIBILITY = (Path(__file__).parent / "accessibility.js").read_text()
_LOCAL = frozenset(("localhost", "127.0.0.1", ""))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Raises Missing without the program."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise Missing("chromium is not installed; `./run test` installs it, or: apt-get install chromium")
    # Its sandbox needs user namespaces, which containers forbid; it opens our own pages only.
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page whose requests elsewhere, script errors and refusals by its own policy are kept."""

    def __init__(self, browser: Browser, base: str, **options: Any) -> None:
        self.base = base
        self.context = browser.new_context(**{"locale": "en-GB", **options})
        self.page: Page = self.context.new_page()
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)

    def open(self, path: str) -> Page:
        """Returns once the charts are drawn, where there are any."""
        self.page.goto(self.base + path)
        if self.page.locator("[data-chart]").count():
            self.page.wait_for_selector("html[data-drawn]")
        return self.page

    def faults(self) -> list[str]:
        """Of accessibility, on the page that is open."""
        found: list[str] = self.page.evaluate(ACCESSIBILITY)
        return found

    def shoot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def _note(self, url: str) -> None:
        split = urlsplit(url)
        if split.scheme not in ("data", "blob") and split.hostname not in _LOCAL:
            self.elsewhere.append(url)
