"""An experiment as people write it: the definition that is hashed, and what it is for.

Owns the shape of `experiments.document`, of the `/v1/experiments` bodies and of the create form: one shape, so that
none of the three knows a field that the others lack.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.recommender.experiments.definitions import Experiment, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Decided before the start. Metric keys are those of the metrics file. `guardrails` {metric: accepted harm as a
    fraction}. `effect`: the smallest relative lift of the primary metric worth finding, for the run-time plan."""

    primary: str = "ctr"
    secondary: tuple[str, ...] = ()
    guardrails: dict[str, float] = field(default_factory=dict)
    alpha: float = 0.05
    correction: str = "holm"
    effect: float = 0.05
    power: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredExperiment:
    """`scenes` empty: all. `targeting`: a filter expression over declared user fields and `context.*`; None: everybody.
    `segment_by`: a context attribute or user field whose value at first exposure splits the results. `time_zone`: IANA
    name, of the days on the page. `shipped`: the variant whose settings are in force for everybody now."""

    definition: Experiment
    owner: str
    hypothesis: str
    plan: Plan
    scenes: tuple[str, ...] = ()
    targeting: str | None = None
    segment_by: str | None = None
    time_zone: str = "UTC"
    currency: str = "USD"
    shipped: str | None = None
    created_at_us: int = 0
    updated_at_us: int = 0
    started_at_us: int | None = None
    stopped_at_us: int | None = None

    @property
    def until_us(self) -> int | None:
        """When it was stopped, or when a holdout ends; None: nobody knows yet."""
        holdout = self.definition.holdout
        ends = [self.stopped_at_us, None if holdout is None else holdout.ends_at_us]
        return min((end for end in ends if end is not None), default=None)

    def is_running(self, now_us: int) -> bool:
        return self.definition.status is Status.RUNNING and (self.until_us is None or now_us < self.until_us)
