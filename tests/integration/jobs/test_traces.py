"""From the request that asks for a job over the broker's message to the chunk: linked traces, and log lines of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import kombu
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.recommender.jobs.broker import QUEUE, WakeUps, make_app
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.working import turn
from shared.observability import context, logging, tracing
from shared.settings.roots import LogSettings, Settings, TracingSettings
from tests.integration.jobs.conftest import MakeWorld
from tests.integration.jobs.world import World

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(TracingSettings(sample_ratio=1.0), service="test", exporter=exporter)
    yield exporter
    tracing.shutdown()


def ask(world: World, traceparent: str) -> None:
    body = read_body({"type": "slate", "params": {"user_ids": ["ann"], "outputs": ["database"]}})
    with tracing.serving("POST /v1/jobs", "r-1", traceparent):
        world.desk.submit(body, actor="test", origin=context.current())


def sent_over(settings: Settings) -> str:
    """The traceparent of a message that lay in a real queue."""
    assert WakeUps(make_app(settings)).top_up(1) == 1
    with kombu.Connection(settings.broker_url()) as connection, connection.SimpleQueue(QUEUE) as queue:
        message = queue.get(timeout=10)
        message.ack()
    return str(message.headers["traceparent"])


def test_a_chunk_is_linked_to_who_asked_for_its_job_and_to_the_message_that_woke_its_worker(
    make_world: MakeWorld, redis_url: str, exported: InMemorySpanExporter
) -> None:
    world = make_world(**{"broker.url": redis_url.replace("/0", "/1")})
    ask(world, PARENT)
    sent = sent_over(world.settings)
    written = io.StringIO()
    logging.configure(LogSettings(), stream=written)
    try:
        assert turn(world.bench, sent)
    finally:
        logging.configure(LogSettings())
    tracing.shutdown()
    spans: dict[SpanKind, ReadableSpan] = {span.kind: span for span in exported.get_finished_spans()}
    asked, message, chunk = (spans[kind] for kind in (SpanKind.SERVER, SpanKind.PRODUCER, SpanKind.CONSUMER))
    assert [(link.context.trace_id, link.context.span_id) for link in chunk.links] == [
        (asked.context.trace_id, asked.context.span_id),
        (message.context.trace_id, message.context.span_id),
    ]
    assert chunk.parent is None
    assert len({span.context.trace_id for span in spans.values()}) == 3
    assert chunk.name == "chunk plan"
    assert dict(chunk.attributes or {})["silkrec.outcome"] == "succeeded"
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (leased,) = [line for line in lines if line["message"] == "chunk leased"]
    assert (leased["request_id"], leased["trace_id"]) == ("r-1", f"{chunk.context.trace_id:032x}")


def test_nothing_is_kept_of_a_job_that_was_asked_for_unsampled(
    make_world: MakeWorld, exported: InMemorySpanExporter
) -> None:
    world = make_world()
    ask(world, PARENT[:-1] + "0")
    world.work()
    tracing.shutdown()
    assert [span.name for span in exported.get_finished_spans()] == []


def test_a_message_without_a_trace_or_with_a_damaged_one_is_worked_on_all_the_same(
    make_world: MakeWorld, exported: InMemorySpanExporter
) -> None:
    world = make_world()
    world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(world.bench, "no traceparent")
    assert turn(world.bench)
    tracing.shutdown()
    assert [len(span.links) for span in exported.get_finished_spans()] == [0, 0]


def test_off_the_chunks_lines_have_the_ids_of_the_request_and_a_trace_of_their_own(make_world: MakeWorld) -> None:
    world = make_world()
    ask(world, PARENT)
    written = io.StringIO()
    logging.configure(LogSettings(), stream=written)
    try:
        world.work()
    finally:
        logging.configure(LogSettings())
    leased = [json.loads(line) for line in written.getvalue().splitlines() if "chunk leased" in line]
    assert {line["request_id"] for line in leased} == {"r-1"}
    assert len({line["trace_id"] for line in leased}) == len(leased) == 2
