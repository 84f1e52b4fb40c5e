"""The Report's tables and sentences. While an alarm blocks, no verdict and no decision leaves this file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.recommender.experiments.dashboard.formats import Formats
from services.recommender.experiments.dashboard.i18n import Catalogue
from services.recommender.experiments.report import Alarm, Cell, Decision, MetricResult, Report, Verdict

Facts = list[tuple[str, str]]
_KINDS = {
    Verdict.BETTER: "good",
    Verdict.PASSED: "good",
    Verdict.WORSE: "bad",
    Verdict.FAILED: "bad",
    Verdict.UNDECIDED: "idle",
}
_DECISIONS = {
    Decision.BLOCKED: ("blocked", "✕"),
    Decision.TOO_EARLY: ("early", "○"),
    Decision.SHIP: ("good", "✓"),
    Decision.DO_NOT_SHIP: ("bad", "✕"),
    Decision.NO_DIFFERENCE_SEEN: ("early", "="),
}
_SHARES = frozenset(("share", "expected_share", "rate"))
_LIFTS = frozenset(("lift", "low", "high", "margin", "effect"))
_PROBABILITIES = frozenset(("p_value", "p_adjusted", "threshold"))


@dataclass(frozen=True, slots=True)
class CellView:
    """`verdict` None: withheld."""

    variant: str
    is_control: bool
    units: str
    value: str
    deviation: str
    lift: str
    difference: str
    fixed: str
    sequential: str
    p: str
    p_adjusted: str
    chance: str
    problem: str | None
    verdict: str | None
    verdict_kind: str


@dataclass(frozen=True, slots=True)
class MetricView:
    title: str
    role: str
    notes: str
    cells: tuple[CellView, ...]


@dataclass(frozen=True, slots=True)
class LatencyView:
    variant: str
    quantile: str
    lift: str
    fixed: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class AlarmView:
    title: str
    sentence: str
    facts: Facts
    blocks: bool


@dataclass(frozen=True, slots=True)
class ReasonView:
    sentence: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class DecisionView:
    kind: str
    icon: str
    sentence: str
    reasons: tuple[ReasonView, ...]


def is_blocked(report: Report) -> bool:
    """Both are asked, so that a report which contradicts itself shows no verdict."""
    return any(alarm.blocks for alarm in report.alarms) or report.conclusion.decision is Decision.BLOCKED


@dataclass(frozen=True, slots=True)
class ResultsView:
    """One reader's words for one Report."""

    report: Report
    t: Catalogue
    f: Formats

    def metrics(self) -> list[MetricView]:
        return [self._metric(metric) for metric in self.report.metrics]

    def segments(self) -> list[tuple[str, tuple[CellView, ...]]]:
        primary = self.primary()
        unit = "" if primary is None else primary.unit
        return [
            (segment.name or self.t("segments.unknown"), tuple(self._cell(cell, unit) for cell in segment.cells))
            for segment in self.report.segments
        ]

    def latency_lifts(self) -> list[LatencyView]:
        return [
            LatencyView(
                quality.variant,
                one.quantile,
                self.f.lift(one.lift),
                self.f.bounds(one.fixed),
                None if one.problem is None else self.t.known(f"problem.{one.problem}", one.problem),
            )
            for quality in self.report.quality
            for one in quality.latency_lifts
        ]

    def alarms(self) -> list[AlarmView]:
        """Those that block first."""
        return [self._alarm(alarm) for alarm in sorted(self.report.alarms, key=lambda alarm: not alarm.blocks)]

    def decision(self) -> DecisionView:
        conclusion = self.report.conclusion
        if is_blocked(self.report):
            kind, icon = _DECISIONS[Decision.BLOCKED]
            return DecisionView(kind, icon, self.t("decision.blocked"), ())
        kind, icon = _DECISIONS[conclusion.decision]
        of = "holdout." if self.report.holdout else ""
        sentence = self.t(f"decision.{of}{conclusion.decision}", variant=conclusion.variant or "")
        reasons = tuple(
            ReasonView(self.t.known(f"reason.{code}", _plain(code)), self.facts(facts))
            for code, facts in conclusion.reasons
        )
        return DecisionView(kind, icon, sentence, reasons)

    def primary(self) -> MetricResult | None:
        return next((metric for metric in self.report.metrics if metric.role == "primary"), None)

    def title(self, metric: MetricResult | None) -> str:
        return "" if metric is None else self.t.known(f"metric.{metric.metric}", metric.title or metric.metric)

    def facts(self, facts: Mapping[str, float | int | str]) -> Facts:
        return [(self.t.known(f"fact.{name}", _plain(name)), self._fact(name, fact)) for name, fact in facts.items()]

    def _fact(self, name: str, fact: float | int | str) -> str:
        if isinstance(fact, str):
            return self.t.known(f"metric.{fact}", fact) if name == "metric" else fact
        if name in _PROBABILITIES:
            return self.f.probability(fact)
        if name in _SHARES:
            return self.f.share(fact)
        if name in _LIFTS:
            return self.f.lift(fact)
        return self.f.count(fact) if float(fact).is_integer() else self.f.number(fact)

    def _alarm(self, alarm: Alarm) -> AlarmView:
        key = f"alarm.{alarm.code}"
        return AlarmView(self.t(key), self.t(f"{key}.sentence"), self.facts(alarm.facts), alarm.blocks)

    def _metric(self, metric: MetricResult) -> MetricView:
        notes = " · ".join(self._notes(metric))
        cells = tuple(self._cell(cell, metric.unit) for cell in metric.cells)
        return MetricView(self.title(metric), metric.role, notes, cells)

    def _notes(self, metric: MetricResult) -> Iterable[str]:
        yield self.t("metric.higher" if metric.higher_is_better else "metric.lower")
        if metric.margin is not None:
            yield self.t("metric.margin", margin=self.f.share(metric.margin))
        if metric.cuped:
            yield self.t("metric.cuped")
        if metric.winsorised_at is not None:
            yield self.t("metric.winsorised", value=self.f.value(metric.winsorised_at, metric.unit))

    def _cell(self, cell: Cell, unit: str) -> CellView:
        hidden = is_blocked(self.report)
        return CellView(
            variant=cell.variant,
            is_control=cell.variant == self.report.control,
            units=self.f.count(cell.units),
            value=self.f.value(cell.value, unit),
            deviation=self.f.deviation(cell.standard_deviation, unit),
            lift=self.f.lift(cell.lift),
            difference=self.f.value(cell.difference, unit),
            fixed=self.f.bounds(cell.fixed),
            sequential=self.f.bounds(cell.sequential),
            p=self.f.probability(cell.p_value),
            p_adjusted=self.f.probability(cell.p_adjusted),
            chance=self.f.share(cell.chance_to_win, 1),
            problem=None if cell.problem is None else self.t.known(f"problem.{cell.problem}", cell.problem),
            verdict=None if hidden else self.t(f"verdict.{cell.verdict}"),
            verdict_kind=_KINDS[cell.verdict],
        )


def _plain(code: str) -> str:
    return code.replace("_", " ")
