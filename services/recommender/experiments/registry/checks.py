"""What an experiment says about this installation: scenes, fields, settings, time zone. Every fault at once."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator

from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.settings import Vocabulary, setting_faults
from services.recommender.filters import compile_filter, compile_targeting
from shared.actions import ActionTable
from shared.errors import FieldError, FilterInvalid, ValidationFailed
from shared.schema import Schema

CONTEXT = "context."


def check(registered: RegisteredExperiment, schema: Schema) -> None:
    """Raises ValidationFailed. Asked when it is written and again before it starts: declarations change."""
    faults = list(_faults(registered, schema))
    if faults:
        details = "; ".join(f"{fault.pointer} {fault.message}" for fault in faults)
        raise ValidationFailed(f"experiment {registered.definition.key!a}: {details}", errors=faults)


def _faults(registered: RegisteredExperiment, schema: Schema) -> Iterator[FieldError]:
    for place, scene in enumerate(registered.scenes):
        if scene not in schema.scenes:
            message = f"there is no scene {scene!a}; declared: {', '.join(sorted(schema.scenes))}"
            yield FieldError(f"/scenes/{place}", message)
    if registered.targeting is not None:
        try:
            compile_targeting(registered.targeting, schema)
        except FilterInvalid as error:
            for fault in error.errors:
                yield FieldError("/targeting", fault.message, fault.code, fault.position)
        if registered.definition.holdout is not None:
            yield FieldError("/targeting", "is of no use to a holdout, which holds out by the hash of its unit alone")
    split = registered.segment_by
    known = {"segments", *schema.user_fields}
    if split is not None and not (split.startswith(CONTEXT) and len(split) > len(CONTEXT)) and split not in known:
        yield FieldError("/segment_by", f"must be context.<name> or a user field: {', '.join(sorted(known))}")
    if registered.time_zone not in zoneinfo.available_timezones():
        yield FieldError("/time_zone", "must be an IANA time zone such as Europe/Berlin")
    vocabulary = Vocabulary(
        frozenset(action.name for action in ActionTable.from_schema(schema)), lambda text: _rules(text, schema)
    )
    for place, variant in enumerate(registered.definition.variants):
        yield from setting_faults(variant.settings, vocabulary, f"/variants/{place}/settings")


def _rules(text: str, schema: Schema) -> None:
    compiled = compile_filter(text, schema)
    if compiled.parameters:
        message = "rules have no filter_values; write the value itself"
        position = compiled.parameters[0].position
        raise FilterInvalid(message, errors=[FieldError("/filter", message, "filter_invalid", position)])
