"""Settings that a deployment ships, read by the release that shipped them and by the one before it."""

from __future__ import annotations

import pytest

from shared.errors import ConfigurationError
from shared.settings.load import load_settings


def test_a_shipped_setting_of_a_newer_release_is_told_and_does_nothing() -> None:
    loaded = load_settings(env={}, shipped={"recommender.candidates": 300, "recommender.not_yet_there": 1})
    assert loaded.settings.recommender.candidates == 300
    assert loaded.ignored == ("recommender.not_yet_there",)
    assert loaded.origin["recommender.candidates"] == "shipped"


def test_a_shipped_value_that_cannot_be_still_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"recommender\.candidates"):
        load_settings(env={}, shipped={"recommender.candidates": -1})
