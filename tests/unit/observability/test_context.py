from __future__ import annotations

import pytest

from shared.observability import context
from shared.observability.context import RequestContext

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_valid_trace_is_continued_with_a_span_of_our_own() -> None:
    ours = RequestContext.accept("r", f"00-{TRACE}-00f067aa0ba902b7-01")
    assert ours.trace_id == TRACE
    assert ours.traceparent.endswith("-01")
    assert "00f067aa0ba902b7" not in ours.traceparent


@pytest.mark.parametrize(
    "bad",
    [None, "", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}-{'0' * 16}-01", f"01-{TRACE}-00f067aa0ba902b7-01",
     f"00-{TRACE.upper()}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-01\n"],
)  # fmt: skip
def test_a_trace_that_is_not_valid_is_replaced(bad: str | None) -> None:
    made = RequestContext.accept("r", bad)
    assert made.trace_id != TRACE
    assert RequestContext.accept("r", made.traceparent).trace_id == made.trace_id


def test_outgoing_headers_exist_only_inside_a_request() -> None:
    assert context.outgoing_headers() == {}
    ours = RequestContext.accept("r-1", None)
    token = context.enter(ours)
    try:
        assert context.outgoing_headers() == {"x-request-id": "r-1", "traceparent": ours.traceparent}
        assert context.current_request_id() == "r-1"
    finally:
        context.leave(token)
    assert context.current_request_id() is None
