"""Every command of the pages is carried out, in the order in which they are read, against one suite; and what pages
show of answers is in the answers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needed
from tests.e2e.documented import Home, home
from tests.e2e.documented_elsewhere import CUT, ELSEWHERE, elsewhere
from tests.pages import SHELL, Block, blocks
from tests.servers import program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# Keys close the door for good, so the pages that make some come last. README.zh-CN.md has README.md's commands:
# tests/unit/test_readme.py.
PAGES = (
    "README.md", "docs/experiments.md", "docs/modellers.md", "docs/jobs.md", "docs/deploy.md", "docs/operators.md",
    "docs/integrators.md",
)  # fmt: skip
PROBLEM = '{"type":"urn:silkrec:problem:'
NOT_YET = ('"code":"unauthenticated"', '"code":"not_found"')
SETTLED_S = 10.0
# Programs of a page that need files which nobody has here; they are compiled, and what they import must be there.
COMPILED_ONLY = ("from services.inference.model import huggingface",)


def test_every_documented_command_succeeds_and_answers_what_its_page_shows(tmp_path: Path) -> None:
    with needed():
        for name in ("curl", "nginx", "envsubst", "kubectl"):
            program(name)
    failures: list[str] = []
    with home(tmp_path) as clone:
        for page in PAGES:
            _follow(clone, page, failures)
    assert not failures, "\n\n".join(failures)


def test_what_is_not_carried_out_is_still_in_a_page() -> None:
    commands = [command for page in PAGES for block in blocks(page) for command in _commands(block)]
    for entry in ELSEWHERE:
        assert any(entry.covers(command) for command in commands), f"no page has {entry.pattern}"
    for part in CUT:
        assert any(part in command for command in commands), f"no page has {part}"
    for line in COMPILED_ONLY:
        assert any(line in block.text for page in PAGES for block in blocks(page)), f"no page has {line}"


def _commands(block: Block) -> list[str]:
    return block.commands() if block.language in SHELL else []


def _follow(clone: Home, page: str, failures: list[str]) -> None:
    """`outputs`: of the last block of commands, until a block of JSON shows one of them."""
    outputs: list[str] = []
    found = list(blocks(page))
    assert found, f"{page} has no blocks"
    for place, block in enumerate(found):
        if block.language in SHELL:
            shown = found[place + 1] if place + 1 < len(found) and found[place + 1].language == "json" else None
            refused = shown is not None and "urn:silkrec:problem:" in shown.text
            outputs = [_carried_out(clone, block, one, failures, refused=refused) for one in block.commands()]
        elif block.language == "json":
            wanted = json.loads(block.text)
            if not any(_has(answer, wanted) for answer in map(_answer, outputs)):
                failures.append(f"{block.where}: no command before it answers so\n" + "\n".join(outputs)[-3000:])
        elif block.language == "python":
            _programmed(clone, block, failures)


def _carried_out(clone: Home, block: Block, command: str, failures: list[str], *, refused: bool) -> str:
    entry = elsewhere(command)
    if entry is not None:
        try:
            entry.check(command)
        except Exception as error:
            failures.append(f"{block.where}: {command}\n{error!r}")
        return ""
    deadline = time.monotonic() + SETTLED_S
    while True:
        try:
            done = clone.run(command)
        except Exception as error:
            failures.append(f"{block.where}: {command}\n{error!r}")
            return ""
        # A new key is known everywhere within two seconds, a new item when the recommender has looked again.
        settles = not refused and any(code in done.stdout for code in NOT_YET)
        if not settles or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if done.returncode != 0 or done.stdout.startswith(PROBLEM) != refused:
        failures.append(f"{block.where}: {command}\nexit {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-1500:]}")
    return done.stdout


def _programmed(clone: Home, block: Block, failures: list[str]) -> None:
    compile(block.text, block.where, "exec")
    if any(line in block.text for line in COMPILED_ONLY):
        return
    done = clone.python(block.text)
    if done.returncode != 0:
        failures.append(f"{block.where}: the program ends with {done.returncode}\n{done.stderr[-6000:]}")


def _answer(output: str) -> Any:
    for line in (output, *reversed(output.strip().splitlines())):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def _has(answer: Any, shown: Any) -> bool:
    """Every key that is shown is there; a list that is shown with something in it is not empty."""
    if isinstance(shown, dict):
        return isinstance(answer, dict) and all(key in answer and _has(answer[key], shown[key]) for key in shown)
    if isinstance(shown, list) and shown:
        return isinstance(answer, list) and bool(answer) and _has(answer[0], shown[0])
    return isinstance(answer, list) if isinstance(shown, list) else True
