"""The words that people read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.message import Message, message_of
from services.alerts.webhook import Webhook
from tests.unit.alerts.posts import alert, post


def said(*alerts: object, base: str = "", **changes: object) -> Message:
    return message_of(Webhook.model_validate(post(*alerts, **changes)), base)  # type: ignore[arg-type]


def test_a_message_says_what_where_since_when_and_what_to_do() -> None:
    message = said(base="https://git.example.com/silkrec/blob/main/")
    assert message.title == "[warning] SilkrecDegraded"
    assert message.fitted(4096).splitlines() == [
        "### [warning] SilkrecDegraded",
        "",
        "**10% of slates come from rung last_good**",
        "",
        "The release has a model.",
        "",
        "rung last_good · since 2026-11-26 15:00:00 UTC",
        "",
        "[what to do](https://git.example.com/silkrec/blob/main/docs/runbooks/SilkrecDegraded.md)",
        "",
        "[Alertmanager](http://alertmanager:9093)",
    ]


def test_a_group_is_one_message_with_what_fires_first() -> None:
    message = said(alert(status="resolved"), alert(labels={"rung": "popular"}), alert(labels={"rung": "partial"}))
    assert message.title == "[warning] SilkrecDegraded (2)"
    text = message.fitted(4096)
    assert text.index("rung popular") < text.index("over:")


def test_what_is_over_says_so() -> None:
    message = said(alert(status="resolved"))
    assert message.title == "[resolved] SilkrecDegraded"
    assert message.kind == "resolved"
    assert "over: 10% of slates" in message.fitted(4096)
    assert "what to do" not in message.fitted(4096)


@pytest.mark.parametrize(
    ("severity", "status", "urgent"),
    [("critical", "firing", True), ("critical", "resolved", False), ("warning", "firing", False)],
)
def test_only_a_critical_alert_that_fires_is_urgent(severity: str, status: str, urgent: bool) -> None:
    assert said(alert(status=status, labels={"severity": severity})).urgent is urgent


def test_a_label_can_neither_call_everyone_nor_make_a_link() -> None:
    text = said(alert(labels={"experiment": "@all [free](http://evil)\n# big"})).fitted(4096)
    assert "@all" not in text
    assert "[free]" not in text
    assert "\n# big" not in text


@given(count=st.integers(1, 60), most=st.integers(200, 5000), word=st.sampled_from(["short", "警报" * 40]))
def test_a_text_never_has_more_bytes_than_the_robot_takes(count: int, most: int, word: str) -> None:
    alerts = [alert(labels={"rung": f"{word}{n}"}, annotations={"summary": word}) for n in range(count)]
    text = said(*alerts).fitted(most)
    assert 0 < len(text.encode()) <= most
    assert text.startswith("### ")


def test_a_long_group_says_how_many_were_left_out() -> None:
    alerts = [alert(labels={"rung": f"r{n}"}) for n in range(50)]
    text = said(*alerts, truncatedAlerts=7).fitted(4096)
    assert "more; see Alertmanager" in text
