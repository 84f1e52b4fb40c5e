"""Errors as gRPC names them, which every binary door writes, and back."""

from __future__ import annotations

import grpc

from shared.errors import (
    ClientError,
    DeadlineExceeded,
    DependencyError,
    Forbidden,
    InferenceUnavailable,
    NotFound,
    Overloaded,
    SilkrecError,
    Unauthenticated,
)
from shared.observability.logging import get_logger

_log = get_logger(__name__)
_CODES: tuple[tuple[type[SilkrecError], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (ClientError, grpc.StatusCode.INVALID_ARGUMENT),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (DependencyError, grpc.StatusCode.UNAVAILABLE),
)


def status_of(error: SilkrecError) -> grpc.StatusCode:
    """INTERNAL is a fault of ours, and logged."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if code is grpc.StatusCode.INTERNAL:
        _log.error("inference failed", code=error.code, detail=error.detail, exc_info=error)
    return code


def error_of(code: grpc.StatusCode, detail: str) -> SilkrecError:
    """What a client of ours raises."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(detail or "the inference service did not answer within the deadline")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(detail, retry_after_s=0.05)
    return InferenceUnavailable(f"the inference service answered {code.name}: {detail}")
