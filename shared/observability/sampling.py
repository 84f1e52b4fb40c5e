"""Whether a trace is kept. Imported once traces are on."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes


class LinkedSampler(Sampler):
    """Of spans without a parent: as the first one that it is linked to, so that all of a job is kept or nothing of it;
    without a link as `otherwise` says."""

    def __init__(self, otherwise: Sampler) -> None:
        self._otherwise = otherwise

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if not links:
            return self._otherwise.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        kept = links[0].context.trace_flags.sampled
        return SamplingResult(Decision.RECORD_AND_SAMPLE if kept else Decision.DROP, attributes if kept else None)

    def get_description(self) -> str:
        return f"as linked, else {self._otherwise.get_description()}"
