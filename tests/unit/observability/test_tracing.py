"""Spans are the requests' own ids, go on to whom is called, reach a collector, and are not there when they are off."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.inference.infer_call import request_of
from shared.observability import context, logging, tracing
from shared.observability.metrics import Metrics
from shared.settings.roots import LogSettings, TracingSettings
from shared.web.middleware import ContextMiddleware
from tests.otlp import collecting
from tests.servers import free_port

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(TracingSettings(sample_ratio=1.0), service="test", exporter=exporter)
    yield exporter
    tracing.shutdown()


def spans(exporter: InMemorySpanExporter) -> dict[SpanKind, ReadableSpan]:
    tracing.shutdown()
    return {span.kind: span for span in exporter.get_finished_spans()}


def application(called: dict[str, str]) -> FastAPI:
    """Calls another service, which notes what it was sent, and logs a line."""
    app = FastAPI()

    @app.get("/v1/items/{item_id}")
    async def item(item_id: str) -> dict[str, str]:
        with tracing.calling("features"):
            called.update(context.outgoing_headers())
        logging.get_logger("test").info("inside")
        return {}

    app.add_middleware(ContextMiddleware, metrics=Metrics("test"))
    return app


def ask(app: FastAPI, **headers: str) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/v1/items/secret-id", headers=headers)

    return asyncio.run(scenario())


def test_a_request_its_call_and_its_log_lines_are_one_trace(exported: InMemorySpanExporter) -> None:
    called: dict[str, str] = {}
    written = io.StringIO()
    logging.configure(LogSettings(), stream=written)
    try:
        ask(application(called), traceparent=PARENT)
    finally:
        logging.configure(LogSettings())
    found = spans(exported)
    server, client = found[SpanKind.SERVER], found[SpanKind.CLIENT]
    trace_id, parent_id = PARENT.split("-")[1:3]
    assert f"{server.context.trace_id:032x}" == trace_id
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == parent_id
    assert client.parent is not None
    assert client.parent.span_id == server.context.span_id
    assert called["traceparent"] == f"00-{trace_id}-{client.context.span_id:016x}-01"
    assert (server.name, client.name) == ("GET /v1/items/{item_id}", "features")
    assert dict(server.attributes or {})["http.status_code"] == 200
    assert "secret-id" not in json.dumps(dict(server.attributes or {}))
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert {line["message"] for line in lines} >= {"inside", "request"}
    assert {line["trace_id"] for line in lines if line["message"] in ("inside", "request")} == {trace_id}


def test_a_call_over_grpc_is_the_callers_trace(exported: InMemorySpanExporter) -> None:
    with request_of("ModelInfer", (("traceparent", PARENT), ("x-request-id", "r-1"))) as ids:
        assert ids.request_id == "r-1"
        assert ids.trace_id == PARENT[3:35]
    server = spans(exported)[SpanKind.SERVER]
    assert server.name == "ModelInfer"
    assert f"{server.context.trace_id:032x}" == PARENT[3:35]


def test_a_caller_that_does_not_sample_is_obeyed(exported: InMemorySpanExporter) -> None:
    called: dict[str, str] = {}
    ask(application(called), traceparent=UNSAMPLED)
    assert spans(exported) == {}
    assert called["traceparent"].endswith("-00")
    assert called["traceparent"][3:35] == UNSAMPLED[3:35]


def test_off_a_trace_goes_on_and_nothing_is_recorded() -> None:
    called: dict[str, str] = {}
    answer = ask(application(called), traceparent=PARENT, **{"x-request-id": "r-1"})
    assert answer.headers["x-request-id"] == "r-1"
    assert called["traceparent"][3:35] == PARENT[3:35]
    assert context.current() is None


def test_off_nothing_that_traces_is_imported() -> None:
    code = (
        "import sys; from shared.web import app; from services.cli import serve; "
        "from shared.observability import tracing; from shared.settings.roots import TracingSettings; "
        "tracing.configure(TracingSettings(), service='x'); "
        # redis-py takes the SDK's metrics in by itself where they are installed, and uses nothing of them.
        "sys.exit('opentelemetry.sdk.trace' in sys.modules or 'opentelemetry.exporter' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_collector_gets_the_spans_before_the_process_ends() -> None:
    with collecting() as (collector, endpoint):
        tracing.configure(TracingSettings(otlp_endpoint=endpoint, sample_ratio=1.0), service="features")
        ask(application({}))
        tracing.shutdown()
    assert {name for name, _ in collector.spans()} == {"silkrec-features"}
    assert {span.name for _, span in collector.spans()} == {"GET /v1/items/{item_id}", "features"}


def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    tracing.configure(TracingSettings(otlp_endpoint=endpoint, sample_ratio=1.0), service="features")
    begin = time.monotonic()
    assert ask(application({})).status_code == 200
    asked = time.monotonic()
    tracing.shutdown()
    assert asked - begin < 1.0
    assert time.monotonic() - asked < 10.0
