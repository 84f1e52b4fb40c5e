"""What `silkrec tune batch` decides and writes; the trials themselves are a measurement."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from services.cli.tune import plot
from services.cli.tune.search import best, delays_then, ladder
from services.cli.tune.trial import Row, Setting
from services.cli.tune.yaml_edit import set_value
from shared.errors import ConfigurationError

PATH = ("inference", "dynamic_batching", "max_batch_size")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "inference:\n  dynamic_batching:\n    max_batch_size: 8\n"),
        ("# only words\n", "# only words\ninference:\n  dynamic_batching:\n    max_batch_size: 8\n"),
        (
            "inference:\n  # why\n  dynamic_batching:\n    max_batch_size: 128  # measured\n# end\n",
            "inference:\n  # why\n  dynamic_batching:\n    max_batch_size: 8  # measured\n# end\n",
        ),
        (
            "inference:\n  device: cpu # slow\n\n# next\nscenes: {}\n",
            "inference:\n  device: cpu # slow\n  dynamic_batching:\n    max_batch_size: 8\n\n# next\nscenes: {}\n",
        ),
        ("inference: {device: cpu}\n", "inference: {device: cpu, dynamic_batching: {max_batch_size: 8}}\n"),
        ("inference:\nlog: {}\n", "inference:\n  dynamic_batching:\n    max_batch_size: 8\nlog: {}\n"),
        (
            "a: 1\ninference:\n    dynamic_batching:\n        enabled: true",
            "a: 1\ninference:\n    dynamic_batching:\n        enabled: true\n        max_batch_size: 8",
        ),
    ],
)
def test_a_value_is_set_and_every_comment_stays(before: str, after: str) -> None:
    assert set_value(before, PATH, 8) == after
    assert set_value(after, PATH, 8) == after


def test_a_list_takes_the_place_of_a_list_in_either_style() -> None:
    for before in ("a:\n  b: [32, 64] # c\nd: 1\n", "a:\n  b:\n    - 32\n    - 64\nd: 1\n"):
        assert yaml.safe_load(set_value(before, ("a", "b"), [4])) == {"a": {"b": [4]}, "d": 1}


def test_a_file_that_cannot_be_kept_is_left_to_its_owner() -> None:
    with pytest.raises(ConfigurationError, match="by hand"):
        set_value("inference: &x\n  dynamic_batching: {}\nother: *x\n", PATH, 8)


def row(setting: Setting, rate: float, capacity: float, p99_ms: float = 20.0) -> Row:
    return Row(setting, rate, 10.0, p99_ms, min(rate, capacity), 1.0 if rate <= capacity else capacity / rate)


@pytest.mark.parametrize(("capacity", "start"), [(100.0, 20.0), (100.0, 900.0), (7.0, 20.0), (3000.0, 100.0)])
def test_the_ladder_ends_near_the_highest_rate_that_is_held(capacity: float, start: float) -> None:
    setting = Setting(8, 1.0)

    async def measure(rate: float) -> Row:
        return row(setting, rate, capacity)

    found = best(asyncio.run(ladder(measure, start)))
    assert found is not None
    assert 0.85 * capacity <= found.rate <= 1.01 * capacity


def test_the_ladder_gives_up_where_nothing_is_held() -> None:
    async def measure(rate: float) -> Row:
        return row(Setting(8, 1.0), rate, 0.0)

    rows = asyncio.run(ladder(measure, 20.0))
    assert len(rows) < 8
    assert best(rows) is None


def test_the_best_holds_the_highest_rate_and_of_equals_has_the_lower_p99() -> None:
    small, large = Setting(8, 1.0), Setting(64, 1.0)
    rows = [row(small, 50, 60), row(small, 90, 60), row(large, 80, 90, 30.0), row(small, 80, 90, 25.0)]
    found = best(rows)
    assert found is rows[3]
    assert delays_then(found, [0.0, 1.0, 4.0]) == [Setting(8, 0.0), Setting(8, 4.0)]


def test_the_plot_is_one_file_with_a_line_a_setting(tmp_path: Path) -> None:
    rows = [row(Setting(8, 1.0), 10, 50), row(Setting(64, 4.0), 10, 50, float("nan"))]
    plot.write(tmp_path / "plot.html", rows, 68.0)
    page = (tmp_path / "plot.html").read_text()
    assert "batch 8, delay 1 ms" in page
    assert "batch 64, delay 4 ms" in page
    plotted = page[page.rindex("Plotly.newPlot") :]
    assert [plotted.count(colour) for colour in plot._COLOURS[:3]] == [2, 2, 0], "one a setting, in both panels"
    assert "NaN," not in page[page.rindex("Plotly.newPlot") :]
    assert 'src="' not in page[: page.index("<script>") + 20]
