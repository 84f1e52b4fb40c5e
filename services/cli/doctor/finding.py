"""What doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`where`: an address, a path, a process; `mend` names a setting or a command, and is empty when all is well."""

    what: str
    verdict: Verdict
    found: str
    mend: str = ""
    where: str = ""


def judged(
    what: str, value: float, found: str, mend: str, *, warn: float, fail: float = float("inf"), where: str = ""
) -> Finding:
    """`value` above `warn` or `fail` is that bad; `mend` is said then alone."""
    verdict: Verdict = "fail" if value > fail else "warn" if value > warn else "ok"
    return Finding(what, verdict, found, "" if verdict == "ok" else mend, where)
