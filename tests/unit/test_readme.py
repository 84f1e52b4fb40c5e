"""README.md and README.zh-CN.md are one page in two languages: the same sections, commands, tables and links; and no
page links a file or a heading that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import REPOSITORY, SHELL, blocks, without_comment

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
PAGES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (*REPOSITORY.glob("README*.md"), *(REPOSITORY / "docs").rglob("*.md"))
)  # fmt: skip
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)


def read(page: str) -> str:
    return (REPOSITORY / page).read_text("utf-8")


def prose(page: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    return [without_comment(line) for block in blocks(page) if block.language in SHELL for line in block.commands()]


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = [title for _, title in _HEADING.findall(prose(page))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_both_languages_have_the_same_commands() -> None:
    assert commands(ENGLISH) == commands(CHINESE)


def test_both_languages_have_the_same_sections_tables_and_points() -> None:
    shapes = []
    for page in (ENGLISH, CHINESE):
        sections = re.split(r"^## .+$", prose(page), flags=re.MULTILINE)
        shape = [(text.count("\n|"), len(re.findall(r"^(?:-|\d\.) ", text, re.MULTILINE))) for text in sections]
        shapes.append(([len(marks) for marks, _ in _HEADING.findall(prose(page))], shape))
    assert shapes[0] == shapes[1]


def test_both_languages_name_the_same_words_of_code_and_the_same_figures() -> None:
    named = [set(re.findall(r"`([^`]+)`", prose(page))) for page in (ENGLISH, CHINESE)]
    assert named[0] == named[1]
    figures = [sorted(re.findall(r"\.?\d[\d,.]*\d|\d", prose(page))) for page in (ENGLISH, CHINESE)]
    assert figures[0] == figures[1]


def test_the_languages_link_each_other_and_the_same_pages() -> None:
    english, chinese = set(_LINK.findall(read(ENGLISH))), set(_LINK.findall(read(CHINESE)))
    assert CHINESE in english
    assert ENGLISH in chinese
    assert english - {CHINESE} == chinese - {ENGLISH}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = Path(page).parent
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = REPOSITORY / here / path if path else REPOSITORY / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(REPOSITORY))), f"{page}: {link}"
