"""What a unit met before. Keys and precedence as GrowthBook's sticky bucketing has them, so its documents can be read.

A document belongs to one unit and holds {`<experiment>__<phase>`: variant key}. The store is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.recommender.experiments.definitions import Experiment

Buckets = Mapping[str, str]
"""{`<experiment>__<phase>`: variant key}, of one unit or merged."""


def bucket_key(experiment_key: str, phase: int) -> str:
    return f"{experiment_key}__{phase}"


def document_key(unit: str, value: str) -> str:
    return f"{unit}||{value}"


def merge(primary: Buckets, fallback: Buckets) -> Buckets:
    """What is known of a person under both ids: who signed in keeps what the visitor met, unless the account met
    something of its own before."""
    return {**fallback, **primary}


def met_closed_phase(experiment: Experiment, buckets: Buckets) -> bool:
    """Whether the unit met a phase from before `first_open_phase`, so that its habits belong to another comparison."""
    return any(bucket_key(experiment.key, phase) in buckets for phase in range(experiment.first_open_phase))


def bucket_of(experiment: Experiment, buckets: Buckets) -> int:
    """The position of the variant that the unit met in this phase; -1 when none, or when it is a variant no more."""
    return experiment.position(buckets.get(bucket_key(experiment.key, experiment.phase), ""))
