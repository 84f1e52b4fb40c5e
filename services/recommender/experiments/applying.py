"""What settings make of a Query. Pure; the settings were checked when they were written (`settings.py`).

Shipped settings stand below what a request asks for itself, for they are a scene's new defaults. A variant stands above
it, for an experiment whose callers overrule it compares nothing; only the caller's deadline binds a variant too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.recommender.catalogue import Catalogue
from services.recommender.domain import CandidateFilter, Query
from shared.contracts.history import Bool, Int32

_PLAIN = ("diversity", "weights", "ranker")
# Of a caller's own list nothing is left out, hidden or drawn at random.
_OF_RETRIEVAL = ("exploration", "candidates", "per_source", "hide_seen", "sources")
Compile = Callable[[str], CandidateFilter]


@dataclass(frozen=True, slots=True)
class Both:
    """The scene's own filter and a variant's rules."""

    scene: CandidateFilter
    rules: CandidateFilter

    @property
    def text(self) -> str:
        return f"({self.scene.text}) AND ({self.rules.text})"

    def mask(
        self, catalogue: Catalogue, item_index: Int32, user: Mapping[str, Any], values: Mapping[str, Any], now_us: int
    ) -> Bool:
        own = self.scene.mask(catalogue, item_index, user, values, now_us)
        return own & self.rules.mask(catalogue, item_index, user, values, now_us)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the request settled itself: `arrived` (monotonic seconds), and whether it sent these two."""

    arrived: float
    diversity: bool
    deadline: bool


def apply(query: Query, settings: Mapping[str, Any], asked: Asked, compile_rules: Compile, *, shipped: bool) -> Query:
    """`query` itself when there is nothing to change."""
    names = _PLAIN if query.input_list is not None else _PLAIN + _OF_RETRIEVAL
    changes: dict[str, Any] = {name: settings[name] for name in names if name in settings}
    if shipped and asked.diversity:
        changes.pop("diversity", None)
    if "sources" in changes:
        changes["sources"] = frozenset(changes["sources"])
    if "rules" in settings:
        rules = compile_rules(settings["rules"])
        changes["scene_filter"] = rules if query.scene_filter is None else Both(query.scene_filter, rules)
    if "deadline_ms" in settings:
        deadline = asked.arrived + settings["deadline_ms"] / 1000
        changes["deadline"] = min(deadline, query.deadline) if asked.deadline else deadline
    return replace(query, **changes) if changes else query
