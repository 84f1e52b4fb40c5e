"""What Alertmanager posts, for tests."""

from __future__ import annotations

from typing import Any

STARTED = "2026-11-26T15:00:00.000Z"


def alert(name: str = "SilkrecDegraded", status: str = "firing", **changes: Any) -> dict[str, Any]:
    labels = {"alertname": name, "severity": "warning", "rung": "last_good", **changes.pop("labels", {})}
    return {
        "status": status,
        "labels": labels,
        "annotations": {
            "summary": "10% of slates come from rung last_good",
            "description": "The release has a model.",
            "runbook": f"docs/runbooks/{name}.md",
            **changes.pop("annotations", {}),
        },
        "startsAt": STARTED,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": f"{name}-{sorted(labels.items())}",
        **changes,
    }


def post(*alerts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told = list(alerts) or [alert()]
    return {
        "version": "4",
        "groupKey": '{}:{alertname="SilkrecDegraded"}',
        "status": "firing" if any(one["status"] == "firing" for one in told) else "resolved",
        "receiver": "robots",
        "alerts": told,
        "externalURL": "http://alertmanager:9093",
        "truncatedAlerts": 0,
        **changes,
    }
