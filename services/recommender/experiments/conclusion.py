"""What an experiment's numbers allow to be decided. Pure.

1. An alarm that blocks: nothing may be read, so nothing is decided.
2. Every treatment is surely worse on the primary metric or failed a guardrail: do not ship, at whatever size; the tests
   hold at every look, and waiting would only harm more users.
3. Fewer units than planned: too early, even when it looks good (a first week is not a usual week).
4. A treatment is surely better and passed every guardrail: ship it, the largest lift first. Guardrails still undecided:
   too early.
5. Otherwise no difference was seen; that is not the same as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.recommender.experiments.report import Alarm, Cell, Conclusion, Decision, MetricResult, Role, Verdict

Reason = tuple[str, Mapping[str, float | int | str]]


def conclude(
    alarms: Sequence[Alarm],
    metrics: Sequence[MetricResult],
    variants: Sequence[str],
    *,
    units: int,
    planned_units: int | None,
    days_left: int | None,
) -> Conclusion:
    """`variants`: treatments that may be shipped, none that was killed. `planned_units` in all; None: unknown."""
    blocking: list[Reason] = [(alarm.code.value, alarm.facts) for alarm in alarms if alarm.blocks]
    if blocking:
        return Conclusion(decision=Decision.BLOCKED, variant=None, reasons=tuple(blocking), days_left=None)
    primary = next((one for one in metrics if one.role is Role.PRIMARY), None)
    if primary is None or not units:
        return Conclusion(decision=Decision.TOO_EARLY, variant=None, reasons=(("no_units", {}),), days_left=days_left)
    refused = {name: found for name in variants if (found := _harm(name, primary, metrics))}
    if variants and len(refused) == len(variants):
        reasons = tuple(reason for found in refused.values() for reason in found)
        return Conclusion(decision=Decision.DO_NOT_SHIP, variant=None, reasons=reasons, days_left=0)
    left = [name for name in variants if name not in refused]
    warned = tuple(reason for found in refused.values() for reason in found)
    if planned_units is None or units < planned_units:
        facts: Mapping[str, float | int | str] = {"units": units, "planned_units": planned_units or 0}
        name = "plan_unknown" if planned_units is None else "units_missing"
        return Conclusion(
            decision=Decision.TOO_EARLY, variant=None, reasons=((name, facts), *warned), days_left=days_left
        )
    return _at_size(primary, metrics, left, warned)


def _at_size(
    primary: MetricResult, metrics: Sequence[MetricResult], variants: Sequence[str], warned: tuple[Reason, ...]
) -> Conclusion:
    better = [found for name in variants if (found := _cell(primary, name)) and found.verdict is Verdict.BETTER]
    better.sort(key=lambda found: -abs(found.lift or 0.0))
    undecided: list[Reason] = []
    for found in better:
        open_guardrails = _guardrails(metrics, found.variant, Verdict.UNDECIDED)
        if not open_guardrails:
            reasons = (_reason("primary_better", primary, found), *warned)
            return Conclusion(decision=Decision.SHIP, variant=found.variant, reasons=reasons, days_left=0)
        undecided += [_reason("primary_better", primary, found)]
        undecided += [_reason("guardrail_undecided", one, cell) for one, cell in open_guardrails]
    if undecided:
        reasons = (*undecided, *warned)
        return Conclusion(decision=Decision.TOO_EARLY, variant=None, reasons=reasons, days_left=None)
    seen = [_reason("primary_undecided", primary, cell) for name in variants if (cell := _cell(primary, name))]
    return Conclusion(decision=Decision.NO_DIFFERENCE_SEEN, variant=None, reasons=(*seen, *warned), days_left=0)


def _harm(variant: str, primary: MetricResult, metrics: Sequence[MetricResult]) -> list[Reason]:
    found: list[Reason] = []
    cell = _cell(primary, variant)
    if cell is not None and cell.verdict is Verdict.WORSE:
        found.append(_reason("primary_worse", primary, cell))
    failed = _guardrails(metrics, variant, Verdict.FAILED)
    return found + [_reason("guardrail_failed", one, cell) for one, cell in failed]


def _guardrails(metrics: Sequence[MetricResult], variant: str, verdict: Verdict) -> list[tuple[MetricResult, Cell]]:
    found = [(one, _cell(one, variant)) for one in metrics if one.role is Role.GUARDRAIL]
    return [(one, cell) for one, cell in found if cell is not None and cell.verdict is verdict]


def _cell(metric: MetricResult, variant: str) -> Cell | None:
    return next((cell for cell in metric.cells if cell.variant == variant), None)


def _reason(code: str, metric: MetricResult, cell: Cell) -> Reason:
    facts: dict[str, float | int | str] = {"metric": metric.metric, "variant": cell.variant}
    interval = cell.sequential
    numbers = {
        "lift": cell.lift,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "margin": metric.margin,
    }
    return code, facts | {name: value for name, value in numbers.items() if value is not None}
