"""The project's pages as a reader of commands sees them: fenced blocks, and the commands of their shell blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHELL = ("sh", "bash")
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """`line`: of its first line in the page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Of a shell block: lines, joined while a quote or a backslash is open. Comments stay."""
        found, command = [], ""
        for line in self.text.splitlines():
            command += line
            if command.endswith("\\") or _is_open(command):
                command += "\n"
                continue
            if shlex.split(command, comments=True):
                found.append(command)
            command = ""
        assert not command, f"{self.where}: a quote stays open"
        return found


def blocks(page: str) -> Iterator[Block]:
    """`page`: path from the repository's root. Blocks inside lists lose their indentation."""
    text = (REPOSITORY / page).read_text("utf-8")
    for match in _BLOCK.finditer(text):
        indent, language, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        yield Block(page, text.count("\n", 0, match.start(3)) + 1, language, "\n".join(lines) + "\n")


def without_comment(command: str) -> str:
    """One line, as it is typed: what stands behind a `#` is for the reader."""
    return " ".join(shlex.split(command, comments=True)) if "#" in command else command


def _is_open(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False
