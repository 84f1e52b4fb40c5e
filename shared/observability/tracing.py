"""OpenTelemetry spans of requests, over HTTP, gRPC and Celery's messages. Off until `configure`.

Off, a request costs what its ids cost anyway; what traces is not even imported. The provider is
ours alone and never the global one, which FastAPI and redis-py would use. On, the span's ids are the ones of the
request's context, so that logs, traces and the `traceparent` that goes on name the same trace.

Work that a request only asks for has traces of its own, linked to the request's (`own_trace`): a job of a million users
is 1,700 chunks over hours with engine calls below each, more than one trace should hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from shared.observability import context
from shared.observability.context import TRACEPARENT_HEADER, RequestContext
from shared.settings.roots import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, Span, Tracer

# A collector that is away must hold up neither a request nor the end of a process.
EXPORT_TIMEOUT_S = 5
QUEUE_SPANS = 4096
SHUTDOWN_MS = 2000
Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class _Active:
    provider: TracerProvider
    tracer: Tracer


_active: _Active | None = None


def configure(settings: TracingSettings, *, service: str, exporter: SpanExporter | None = None) -> None:
    """Once a process, at its entry. Nothing without `settings.otlp_endpoint`. `exporter`: instead of OTLP over gRPC."""
    global _active
    if not settings.otlp_endpoint and exporter is None:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    if exporter is None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        endpoint = settings.otlp_endpoint
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT_S
        )
    from shared.observability.sampling import LinkedSampler

    sampler = ParentBased(LinkedSampler(TraceIdRatioBased(settings.sample_ratio)))
    provider = TracerProvider(
        sampler=sampler, resource=Resource.create({"service.name": f"silkrec-{service}"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS))
    _active = _Active(provider, provider.get_tracer("silkrec"))


def shutdown() -> None:
    """Sends what waits, and is off from then on."""
    global _active
    active, _active = _active, None
    if active is not None:
        active.provider.force_flush(SHUTDOWN_MS)
        active.provider.shutdown()


@contextlib.contextmanager
def serving(name: str, request_id: str | None, traceparent: str | None) -> Iterator[RequestContext]:
    """Around a request: its ids are the current ones inside, and a span of it is sent when traces are on."""
    ids = RequestContext.accept(request_id, traceparent)
    active = _active
    if active is None:
        with _within(ids):
            yield ids
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {TRACEPARENT_HEADER: traceparent}
    parent = TraceContextTextMapPropagator().extract(carrier)
    span = active.tracer.start_span(name, context=parent, kind=SpanKind.SERVER)
    with _around(span, ids) as known:
        yield known


@contextlib.contextmanager
def own_trace(
    name: str, kind: Literal["producer", "consumer"], *, request_id: str | None = None, links: Sequence[str | None] = ()
) -> Iterator[RequestContext]:
    """Around a message that is sent, or work behind one. `request_id` of who asked for it, so that log lines are found
    by it; `links`: traceparents, who asked first: its decision whether to sample is kept."""
    ids, active = RequestContext.accept(request_id, None), _active
    if active is None:
        with _within(ids):
            yield ids
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind

    linked = [link for sent in links if sent is not None for link in _links(sent)]
    span = active.tracer.start_span(name, context=Context(), kind=SpanKind[kind.upper()], links=linked)
    with _around(span, ids) as known:
        yield known


@contextlib.contextmanager
def _within(ids: RequestContext) -> Iterator[None]:
    token = context.enter(ids)
    try:
        yield
    finally:
        context.leave(token)


@contextlib.contextmanager
def _around(span: Span, ids: RequestContext) -> Iterator[RequestContext]:
    """`ids` with the span's traceparent; the span ends with the block."""
    from opentelemetry.trace import use_span

    ids = replace(ids, traceparent=_traceparent(span))
    span.set_attribute("silkrec.request_id", ids.request_id)
    with _within(ids), use_span(span, end_on_exit=True):
        yield ids


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Around a call of another service: `context.outgoing_headers()` names the call's own span inside."""
    active, ids = _active, context.current()
    if active is None or ids is None:
        yield
        return
    from opentelemetry.trace import SpanKind

    with active.tracer.start_as_current_span(name, kind=SpanKind.CLIENT) as span:
        token = context.enter(replace(ids, traceparent=_traceparent(span)))
        try:
            yield
        finally:
            context.leave(token)


def note(name: str | None = None, **attributes: Attribute) -> None:
    """On the current span: another name, and attributes (`http_route` becomes `http.route`). No ids of users, items."""
    if _active is None:
        return
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    if name is not None:
        span.update_name(name)
    for key, value in attributes.items():
        span.set_attribute(key.replace("_", ".", 1), value)


def _links(traceparent: str) -> list[Link]:
    """One, or none where it is malformed."""
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    sent = get_current_span(TraceContextTextMapPropagator().extract({TRACEPARENT_HEADER: traceparent}))
    return [Link(sent.get_span_context())] if sent.get_span_context().is_valid else []


def _traceparent(span: Span) -> str:
    ids = span.get_span_context()
    return f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"
