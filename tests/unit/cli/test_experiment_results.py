"""The results table fits the terminal, or is no table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from services.cli import experiments
from tests import dashboard_example as example


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_number_is_cut_at_any_width(width: int) -> None:
    written = io.StringIO()
    experiments._print(example.report(), Console(file=written, width=width))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(written.getvalue().split())
    for wanted in ("watch_time", "control", "diverse", "+4.87%", "+1.33% to +8.41%", "98.8%", "0.0246", "better"):
        assert wanted in text
    assert "…" not in text
    assert ("┃" in text) is (width == 200), "a wide terminal gets a table"
