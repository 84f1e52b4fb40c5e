"""What Prometheus knows: alerts that fire, and whom it cannot ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from services.cli.doctor.finding import Finding, Verdict


def examine(http: httpx.Client, url: str) -> Iterator[Finding]:
    try:
        alerts = http.get(f"{url}/api/v1/alerts").json()["data"]["alerts"]
        targets = http.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        mend = "see var/log/prometheus.log, or set --prometheus to its address"
        yield Finding("Prometheus", "fail", f"cannot be asked: {type(error).__name__}", mend, url)
        return
    yield from down(targets, url)
    yield from firing(alerts, url)


def down(targets: Sequence[Mapping[str, Any]], url: str) -> Iterator[Finding]:
    away = [target for target in targets if target["health"] == "down"]
    for target in away:
        found = f"cannot ask {target['labels'].get('service', target['labels'].get('job', '?'))}: {target['lastError']}"
        mend = "start it, or mend infra/prometheus/targets"
        yield Finding("Prometheus", "warn", found, mend, str(target["scrapeUrl"]))
    if not away:
        yield Finding("Prometheus", "ok", f"asks {len(targets)} targets", "", url)


def firing(alerts: Sequence[Mapping[str, Any]], url: str) -> Iterator[Finding]:
    """A critical alert is a failure; what waits for its time (`pending`) is left to Prometheus."""
    fires = [alert for alert in alerts if alert["state"] == "firing"]
    for alert in fires:
        labels, told = alert["labels"], alert.get("annotations", {})
        name = str(labels["alertname"])
        verdict: Verdict = "fail" if labels.get("severity") == "critical" else "warn"
        said = str(told.get("summary") or told.get("description") or "fires")
        yield Finding(f"alert {name}", verdict, said, f"docs/runbooks/{name}.md", url)
    if not fires:
        yield Finding("alerts", "ok", "none fires", "", url)
