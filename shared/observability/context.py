"""Request id and W3C trace context, carried by context variables from the web layer to HTTP, gRPC and Celery calls.

Trace context: https://www.w3.org/TR/trace-context/, version 00.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar, Token
from dataclasses import dataclass

REQUEST_ID_HEADER = "x-request-id"
TRACEPARENT_HEADER = "traceparent"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})\Z")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """`traceparent` already names our own span, so it can be sent on as it is."""

    request_id: str
    traceparent: str

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @classmethod
    def accept(cls, request_id: str | None, traceparent: str | None) -> RequestContext:
        """Keeps what the caller sent where it is well formed; a bad or absent id is generated, not refused."""
        if request_id is None or _REQUEST_ID.match(request_id) is None:
            request_id = secrets.token_hex(16)
        match = _TRACEPARENT.match(traceparent) if traceparent is not None else None
        trace_id, flags = (match[1], match[2]) if match else (secrets.token_hex(16), "00")
        return cls(request_id, f"00-{trace_id}-{secrets.token_hex(8)}-{flags}")


_current: ContextVar[RequestContext | None] = ContextVar("silkrec_request", default=None)


def current() -> RequestContext | None:
    return _current.get()


def current_request_id() -> str | None:
    context = _current.get()
    return None if context is None else context.request_id


def enter(context: RequestContext) -> Token[RequestContext | None]:
    return _current.set(context)


def leave(token: Token[RequestContext | None]) -> None:
    _current.reset(token)


def outgoing_headers() -> dict[str, str]:
    """What a call to another service carries (HTTP headers or gRPC metadata); empty outside a request."""
    context = _current.get()
    if context is None:
        return {}
    return {REQUEST_ID_HEADER: context.request_id, TRACEPARENT_HEADER: context.traceparent}
