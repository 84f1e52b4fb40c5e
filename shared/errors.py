"""Every error SilkRec raises on purpose, in one tree. Standard library only.

    SilkrecError                     500 internal
    ├── ClientError                  400 bad_request            the caller must change the request
    │   ├── ValidationFailed         422 validation_failed      `errors[]` points at the fields
    │   │   └── FilterInvalid        422 filter_invalid         `errors[].position` is the character
    │   ├── Unauthenticated          401 unauthenticated
    │   ├── Forbidden                403 forbidden
    │   ├── NotFound                 404 not_found
    │   ├── Conflict                 409 conflict
    │   ├── PayloadTooLarge          413 payload_too_large
    │   └── TooManyRequests          429 too_many_requests      with Retry-After
    ├── DependencyError              503 dependency_unavailable something we call is down or slow
    │   ├── DatabaseUnavailable      503 database_unavailable
    │   ├── RedisUnavailable         503 redis_unavailable
    │   └── InferenceUnavailable     503 inference_unavailable
    ├── Overloaded                   503 overloaded             a bounded queue of ours is full
    ├── DeadlineExceeded             504 deadline_exceeded      the caller's deadline passed before we could answer
    ├── NothingToServe               503 nothing_to_serve       even the popular rung is empty
    ├── ConfigurationError           500 configuration          the start is refused; names the setting to change
    └── ArtifactError                500 artifact               a model or index is missing or damaged

`status`, `code`, `retryable` and `responsibility` are class attributes: metrics, problem+json and logs read them and
nothing ever parses a message. A message says what is wrong, where, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Responsibility = Literal["client", "server", "dependency"]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault inside a request. `pointer` is a JSON pointer (RFC 6901); `position` a character offset in a filter."""

    pointer: str
    message: str
    code: str = "invalid"
    position: int | None = None

    def as_dict(self) -> dict[str, str | int]:
        row: dict[str, str | int] = {"pointer": self.pointer, "message": self.message, "code": self.code}
        if self.position is not None:
            row["position"] = self.position
        return row


class SilkrecError(Exception):
    """Root of the tree. `detail` is shown to the caller; keep secrets and user ids out of it."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    responsibility: ClassVar[Responsibility] = "server"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class ClientError(SilkrecError):
    status = 400
    code = "bad_request"
    title = "Bad request"
    responsibility = "client"


class ValidationFailed(ClientError):
    status = 422
    code = "validation_failed"
    title = "The request does not fit the API"


class FilterInvalid(ValidationFailed):
    code = "filter_invalid"
    title = "The filter expression is not valid"


class Unauthenticated(ClientError):
    status = 401
    code = "unauthenticated"
    title = "An API key is needed"


class Forbidden(ClientError):
    status = 403
    code = "forbidden"
    title = "This key may not do that"


class NotFound(ClientError):
    status = 404
    code = "not_found"
    title = "Not found"


class Conflict(ClientError):
    status = 409
    code = "conflict"
    title = "Conflict with the present state"


class PayloadTooLarge(ClientError):
    status = 413
    code = "payload_too_large"
    title = "The body is too large"


class TooManyRequests(ClientError):
    status = 429
    code = "too_many_requests"
    title = "Too many requests"
    retryable = True


class DependencyError(SilkrecError):
    status = 503
    code = "dependency_unavailable"
    title = "A dependency is unavailable"
    retryable = True
    responsibility = "dependency"


class DatabaseUnavailable(DependencyError):
    code = "database_unavailable"
    title = "The database is unavailable"


class RedisUnavailable(DependencyError):
    code = "redis_unavailable"
    title = "Redis is unavailable"


class InferenceUnavailable(DependencyError):
    code = "inference_unavailable"
    title = "The inference service is unavailable"


class Overloaded(SilkrecError):
    status = 503
    code = "overloaded"
    title = "Too much work is queued"
    retryable = True


class DeadlineExceeded(SilkrecError):
    status = 504
    code = "deadline_exceeded"
    title = "The deadline passed"
    retryable = True


class NothingToServe(SilkrecError):
    status = 503
    code = "nothing_to_serve"
    title = "There is nothing to recommend yet"
    retryable = True


class ConfigurationError(SilkrecError):
    code = "configuration"
    title = "The configuration cannot work"


class ArtifactError(SilkrecError):
    code = "artifact"
    title = "A model or index cannot be used"
