"""A group of alerts as the words that people read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.alerts.webhook import Alert, Webhook

# Of labels, what tells alerts of one name apart; the rest is in Alertmanager.
_HIDDEN = frozenset(("alertname", "severity", "job", "runbook"))
_LABEL_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Message:
    """`paragraphs`: the first is the heading; from the end on they may be left out. `kind`: firing or resolved.
    `urgent`: a critical alert fires."""

    title: str
    paragraphs: tuple[str, ...]
    kind: str
    urgent: bool

    def fitted(self, most_bytes: int) -> str:
        """As many paragraphs as fit, in UTF-8; the robots refuse a longer text as a whole."""
        text = "\n\n".join(self.paragraphs)
        if len(text.encode()) <= most_bytes:
            return text
        kept, room = [], most_bytes - 64
        for paragraph in self.paragraphs:
            room -= len(paragraph.encode()) + 2
            if room < 0:
                break
            kept.append(paragraph)
        if not kept:
            return self.paragraphs[0].encode()[:most_bytes].decode(errors="ignore")
        return "\n\n".join([*kept, f"… and {len(self.paragraphs) - len(kept)} more; see Alertmanager"])


def message_of(webhook: Webhook, runbook_base_url: str = "") -> Message:
    """`runbook_base_url` goes before an alert's annotation `runbook`, a path in the repository."""
    firing = [alert for alert in webhook.alerts if alert.status == "firing"]
    resolved = [alert for alert in webhook.alerts if alert.status == "resolved"]
    urgent = any(alert.labels.get("severity") == "critical" for alert in firing)
    title = _title(firing, resolved)
    paragraphs = [f"### {title}"]
    paragraphs += [_paragraph(alert, runbook_base_url) for alert in [*firing, *resolved]]
    if webhook.truncated_alerts:
        paragraphs.append(f"{webhook.truncated_alerts} more in Alertmanager")
    if webhook.external_url:
        paragraphs.append(f"[Alertmanager]({webhook.external_url})")
    return Message(title, tuple(paragraphs), webhook.status, urgent)


def _title(firing: Sequence[Alert], resolved: Sequence[Alert]) -> str:
    shown = firing or resolved
    names = list(dict.fromkeys(alert.name for alert in shown))
    severity = shown[0].labels.get("severity", "alert") if firing else "resolved"
    more = f" and {len(names) - 1} other" if len(names) > 1 else ""
    return f"[{severity}] {names[0]}{more}" + (f" ({len(shown)})" if len(shown) > 1 else "")


def _paragraph(alert: Alert, runbook_base_url: str) -> str:
    words = alert.annotations.get("summary") or alert.name
    lines = [f"**{_plain(words)}**" if alert.status == "firing" else f"over: {_plain(words)}"]
    if alert.status == "firing" and alert.annotations.get("description"):
        lines.append(_plain(alert.annotations["description"]))
    labels = [
        f"{key} {_plain(value)[:_LABEL_CHARACTERS]}"
        for key, value in sorted(alert.labels.items())
        if key not in _HIDDEN
    ]
    lines.append(" · ".join([*labels, f"since {alert.starts_at:%Y-%m-%d %H:%M:%S} UTC"]))
    runbook = alert.annotations.get("runbook")
    if runbook and alert.status == "firing":
        lines.append(f"[what to do]({runbook_base_url}{runbook})" if runbook_base_url else f"what to do: {runbook}")
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """A label's value is anybody's: it must neither break the line nor call everyone."""
    return " ".join(text.split()).replace("@", "@\u200b").replace("[", "(").replace("]", ")")
