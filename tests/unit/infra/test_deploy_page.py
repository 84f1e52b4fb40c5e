"""docs/deploy.md: the files it names are there, and its commands are ones."""

from __future__ import annotations

import re
import shlex

import pytest

from infra.grafana.generate import main
from tests.unit.infra.parts import REPOSITORY, assert_is_command, run

PAGE = (REPOSITORY / "docs" / "deploy.md").read_text("utf-8")
# What an operator makes, and what a neighbour of this page owns.
MADE = {
    "infra/docker/images.env", "infra/docker/compose.env", "infra/docker/alerts.env", "infra/k8s/secret.env",
    "infra/nginx", "infra/prometheus/rules",
}  # fmt: skip


def lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_files_are_there() -> None:
    named = set(re.findall(r"(?<![\w/.])infra/[\w./-]*\w", PAGE))
    assert len(named) > 12
    missing = {name for name in named - MADE if not (REPOSITORY / name).exists()}
    assert not missing
    for name in re.findall(r"\]\(\.\./([^)]+)\)", PAGE):
        assert (REPOSITORY / name).exists(), name


def test_what_an_operator_makes_is_ignored_by_git_where_it_holds_secrets() -> None:
    for name in ("infra/docker/compose.env", "infra/docker/alerts.env", "infra/k8s/secret.env"):
        run("git", "-C", REPOSITORY, "check-ignore", "--quiet", name)


def test_every_line_is_shell_and_begins_with_a_program_that_is_known() -> None:
    assert len(lines()) > 12
    for line in lines():
        run("sh", "-n", "-c", line)
        program = shlex.split(line, comments=True)[0]
        known = (
            program in ("docker", "kubectl", "cp", "python", "silkrec") or (REPOSITORY / program).stat().st_mode & 0o100
        )
        assert known, line


def test_commands_of_silkrec_exist() -> None:
    for command in re.findall(r"`silkrec ([^`]+)`", PAGE):
        assert_is_command(shlex.split(command))


@pytest.mark.parametrize("line", [line for line in lines() if line.startswith("python ") and "--check" in line])
def test_the_dashboards_check_passes(line: str) -> None:
    assert main(shlex.split(line)[3:]) == 0
