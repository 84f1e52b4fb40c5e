"""Documented commands that cannot run beside the tests, why, and what is looked at instead."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tests.pages import REPOSITORY, without_comment
from tests.unit.infra.parts import assert_is_command


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def is_shell(command: str) -> None:
    subprocess.run(["sh", "-n", "-c", command], check=True, timeout=10)


def is_silkrec(command: str) -> None:
    """Command and options exist and their values can be read."""
    assert_is_command(words(command)[1:])


def is_run(command: str) -> None:
    """`./run help` names each subcommand, with its options."""
    is_shell(command)
    told = subprocess.run([REPOSITORY / "run", "help"], check=True, timeout=10, capture_output=True, text=True).stdout
    for part in re.findall(r"\./run [^&|]+", without_comment(command)):
        name, *options = words(part)[1:]
        (line,) = [line for line in told.splitlines() if line.startswith(f"./run {name} ") or line == f"./run {name}"]
        assert all(option in line for option in options if option.startswith("--")), f"{part}: {line}"


def names_files(command: str) -> None:
    """The files below infra/ that it is given are there, but those that an earlier command makes."""
    is_shell(command)
    named = re.findall(r"(?<![\w/])infra/[\w./-]+", command)
    missing = [name for name in named if not name.endswith(".env") and not (REPOSITORY / name).exists()]
    assert not missing, f"{command}: there is no {', '.join(missing)}"


def is_benchmark(command: str) -> None:
    """The script is there and takes these options."""
    _, _, module, *arguments = words(command)
    tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    known = {word.value for call in added for word in call.args if isinstance(word, ast.Constant)}
    unknown = {word for word in arguments if word.startswith("--")} - known
    assert not unknown, f"{module} takes no {', '.join(unknown)}"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """`pattern` is searched from the command's first character."""

    pattern: str
    reason: str
    check: Callable[[str], None]

    def covers(self, command: str) -> bool:
        return re.match(self.pattern, command) is not None


ELSEWHERE = (
    Elsewhere(r"git (clone|pull)\b", "there is no remote here", is_shell),
    Elsewhere(r"\./run ", "makes .venv/ and starts what others test: test_up.py, and the gate itself", is_run),
    Elsewhere(r"silkrec serve \w+", "the suite of this test is one that was started so", is_silkrec),
    Elsewhere(r"silkrec tune batch", "measures for minutes; tests/unit/cli/test_tune.py", is_silkrec),
    Elsewhere(r"silkrec train --preset moe", "a second model costs seconds and shows no more", is_silkrec),
    Elsewhere(r"silkrec open-bandit ", "downloads; integration/recommender/test_open_bandit_import.py", is_silkrec),
    Elsewhere(r"python -m benchmarks\.", "minutes each", is_benchmark),
    Elsewhere(r"(prometheus|alertmanager) --", "stays; tests/prometheus.py starts both on these files", names_files),
    Elsewhere(r"infra/docker/(pin|build)\b", "needs a registry and Docker", names_files),
    Elsewhere(r"docker ", "there is no Docker here; tests/unit/infra/test_compose.py", names_files),
    Elsewhere(r"kubectl (create|-n) ", "there is no cluster here; tests/unit/infra/test_kubernetes.py", names_files),
)


CUT = {" | kubectl apply -f -": "there is no cluster here; what would be applied is made"}


def elsewhere(command: str) -> Elsewhere | None:
    return next((entry for entry in ELSEWHERE if entry.covers(command)), None)
