"""Both catalogues say the same things."""

from __future__ import annotations

import string

import pytest

from services.recommender.experiments.dashboard.i18n import LANGUAGES, Catalogue, en, preferred, zh
from services.recommender.experiments.report import AlarmCode, Decision, Health, Role, Verdict


def places(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


def test_the_catalogues_have_the_same_keys_and_places() -> None:
    assert list(en.TEXTS) == list(zh.TEXTS)
    assert {key: places(text) for key, text in en.TEXTS.items()} == {key: places(zh.TEXTS[key]) for key in zh.TEXTS}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_of_a_report_has_words(language: str) -> None:
    texts = LANGUAGES[language]
    wanted = [f"alarm.{code}" for code in AlarmCode] + [f"alarm.{code}.sentence" for code in AlarmCode]
    wanted += [f"decision.{code}" for code in Decision] + [f"verdict.{code}" for code in Verdict]
    wanted += [f"metric_role.{code}" for code in Role] + [f"health.{code}" for code in Health]
    assert [key for key in wanted if not texts.get(key)] == []


def test_chinese_sentences_are_chinese() -> None:
    allowed = ("correction.benjamini_hochberg", "quality.p50", "quality.p95", "quality.p99", "quality.ild")
    same = [key for key in en.TEXTS if en.TEXTS[key] == zh.TEXTS[key] and key not in allowed]
    assert same == []


def test_facts_fill_their_places() -> None:
    assert Catalogue("zh")("decision.ship", variant="diverse").startswith("建议全量发布 diverse")
    assert Catalogue("en").known("metric.of_a_team", "their title") == "their title"


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("fr,zh;q=0.2", "zh"),
        ("fr", "en"),
        ("", "en"),
        ("zh;q=x,en;q=0.1", "en"),
        ("zh;q=0", "en"),
    ],
)
def test_the_browsers_languages_are_weighed(header: str, language: str) -> None:
    assert preferred(header) == language
