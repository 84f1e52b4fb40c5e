"""Which parts there are and where: from the settings, from what a supervisor here published, from options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.cli.serve import SERVICES
from services.cli.supervisor import addresses, holder, state_file
from shared.settings.roots import Settings


@dataclass(frozen=True, slots=True)
class Deployment:
    """`services`: name to base URL; `pids`: of those that a supervisor here runs. `supervised`: one runs, so each of
    its parts should answer; without one, a part that is away may be another machine's."""

    services: Mapping[str, str]
    supervised: bool = False
    pids: Mapping[str, int] = field(default_factory=dict)
    nginx: str = ""
    prometheus: str = ""


def find(settings: Settings, *, nginx: str = "", prometheus: str = "") -> Deployment:
    known = {name: url for name, url in addresses(settings).items() if name in SERVICES or name == "alerts"}
    if holder(settings) is None:
        return Deployment(known, False, {}, nginx, prometheus)
    try:
        told = json.loads(state_file(settings).read_text("utf-8"))["services"]
    except (OSError, ValueError, KeyError):  # it has just begun
        told = {}
    urls = {name: str(child["url"]) for name, child in told.items()}
    pids = {name: int(child["pid"]) for name, child in told.items() if child["pid"]}
    return Deployment(
        {**known, **{name: url for name, url in urls.items() if name in known}},
        True,
        pids,
        nginx or urls.get("nginx", ""),
        prometheus or urls.get("prometheus", ""),
    )
