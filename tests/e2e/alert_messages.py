"""Messages as robots took them, and the page that shows operators one of each alert.

`python -m tests.e2e.alert_messages` causes every alert once more and writes the page anew.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.nginx import REPOSITORY

PAGE = REPOSITORY / "docs" / "runbooks" / "messages.md"
Told = Sequence[tuple[str, str]]
"""(vendor, text), oldest first."""
_TITLE = re.compile(r"### \[(?P<severity>\w+)\] (?P<name>Silkrec\w+)(?P<more>.*)")
_ADDRESS = re.compile(r"(https?://)?[\w.-]+:\d+")
_FIGURE = re.compile(r"\d[\d.:e-]*(ms|[smhdk%])?( \d+[smhd]| \d\d:\d\d:\d\d)*")
_RUNG = re.compile(r"\brung \w+")
_HEAD = """# Messages

What arrives in the groups of DingTalk and WeCom, an example of each alert: the same text in both, and in DingTalk its
first line as the title too. They were caused in a running suite whose times were shortened, which is why some figures
are small; a test causes them again and compares all but the figures. This page is written by
`python -m tests.e2e.alert_messages`.

With `alerts.runbook_base_url` the line before the last is a link. One message holds the alerts of one name and service;
what is over is told without advice.
"""


def named(text: str, *, resolved: bool = False) -> list[str]:
    """The name of the alerts that a message tells of, if it is of that kind."""
    title = _TITLE.match(text)
    return [title["name"]] if title and (title["severity"] == "resolved") == resolved else []


def first(told: Told, vendor: str, name: str, *, resolved: bool = False) -> str:
    """Of one alert alone, if there is one such."""
    found = [text for by, text in told if by == vendor and name in named(text, resolved=resolved)]
    assert found, f"{vendor} was never told of {name}"
    return min(found, key=lambda text: text.count("\n"))


def masked(text: str) -> str:
    """Without figures, addresses and what a busy machine decides: how many alerts and which rung."""
    text = re.sub(r"^(### \[\w+\] \w+) \(\d+\)", r"\1", text)
    for pattern, instead in ((_ADDRESS, "ADDRESS"), (_RUNG, "rung RUNG"), (_FIGURE, "N")):
        text = pattern.sub(instead, text)
    return text


def page(told: Told, names: Iterable[str], ended: Sequence[str], addresses: dict[str, str]) -> str:
    """`ended`: of which the end is shown too; `addresses`: of the run, and what stands instead."""
    parts = [_HEAD]
    for name in names:
        kinds = [first(told, "dingtalk", name)]
        kinds += [first(told, "dingtalk", name, resolved=True)] if name in ended else []
        parts.append(f"## [{name}]({name}.md)\n")
        parts += [f"```\n{text}\n```\n" for text in kinds]
    written = "\n".join(parts)
    for here, instead in addresses.items():
        written = written.replace(here, instead)
    return written


def examples() -> dict[str, list[str]]:
    """Of the page: name to its messages, firing first."""
    parts = re.split(r"^## \[(\w+)\].*$", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    blocks = [re.findall(r"^```\n(.*?)\n```$", part, re.MULTILINE | re.DOTALL) for part in parts[1::2]]
    return dict(zip(parts[::2], blocks, strict=True))


def main() -> None:
    from tests.e2e.alert_causes import ENDED, cause_everything
    from tests.e2e.alert_world import alert_names, world
    from tests.servers import mariadb, redis_server

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(mariadb(folder / "mariadb"))
        redis = stack.enter_context(redis_server(folder / "redis"))
        ours = stack.enter_context(world(folder / "world", database, redis))
        cause_everything(ours)
        PAGE.write_text(page(ours.robots.told, alert_names(), ENDED, ours.addresses()), "utf-8")


if __name__ == "__main__":
    main()
