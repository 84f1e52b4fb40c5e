"""POST /v1/events: from the body's JSON to rows, and to reasons for those that do not fit.

Plain checks and not a model: 500 events are looked at in about 3 ms, and each reason names the field and how to mend
it. A fault of the body refuses the request (422); a fault of an event rejects that event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.features.ingest.rows import DAY_US, EventRow
from services.features.items.times import TIME_RULE, parse_time
from shared.actions import ActionTable
from shared.errors import FieldError, ValidationFailed
from shared.identity import ID_RULE, is_id, user_key

MAX_EVENTS = 500
MAX_IMPRESSION = 500
MAX_PROPERTIES_BYTES = 8192
MAX_POSITION = 1_000_000
BODY_FIELDS = frozenset({"events", "sent_at", "client_key", "user_token"})
EVENT_FIELDS = frozenset(
    {"event_id", "event_type", "user_id", "visitor_id", "item_id", "session_id", "event_value", "occurred_at"}
    | {"recommendation_id", "position", "impression", "properties"}
)
_REQUIRED = ("event_id", "event_type", "occurred_at")
_IDS = ("event_id", "user_id", "visitor_id", "item_id", "session_id", "recommendation_id")


@dataclass(frozen=True, slots=True)
class Rejected:
    """`event_id` as far as it could be read."""

    index: int
    event_id: str | None
    code: str
    message: str

    def as_dict(self) -> dict[str, Any]:
        return {"index": self.index, "event_id": self.event_id, "code": self.code, "message": self.message}


class _Unfit(Exception):
    """Of one event; never leaves this module."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class EventBody:
    """`events` unchecked. `skew_us` is added to each occurred_at: how far the client's clock is behind ours."""

    events: Sequence[Any]
    skew_us: int
    client_key: str | None
    user_token: str | None


def read_body(body: Any, received_at_us: int) -> EventBody:
    """Raises ValidationFailed that points at the field."""
    if not isinstance(body, dict):
        raise _refused("", "the body must be a JSON object with `events`")
    for name in body.keys() - BODY_FIELDS:
        known = ", ".join(sorted(BODY_FIELDS))
        raise _refused(f"/{_escaped(name)}", f"unknown field; known: {known}", "extra_forbidden")
    events = body.get("events")
    if not isinstance(events, list):
        raise _refused("/events", "must be a list of events", "missing" if events is None else "invalid")
    if not 1 <= len(events) <= MAX_EVENTS:
        raise _refused("/events", f"holds {len(events)} events; send 1 to {MAX_EVENTS} a request", "too_many")
    texts: dict[str, str | None] = {}
    for name in ("client_key", "user_token"):
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise _refused(f"/{name}", "must be a string")
        texts[name] = value
    skew_us = 0
    if body.get("sent_at") is not None:
        sent_at_us = _time_us(body["sent_at"])
        if sent_at_us is None:
            raise _refused("/sent_at", f"must be {TIME_RULE}")
        skew_us = received_at_us - sent_at_us
    return EventBody(events, skew_us, texts["client_key"], texts["user_token"])


class EventValidator:
    """Immutable; one a process."""

    def __init__(self, actions: ActionTable, *, future_tolerance_s: float) -> None:
        self._actions = actions
        self._tolerance_us = int(future_tolerance_s * 1_000_000)

    def rows(self, body: EventBody, received_at_us: int) -> tuple[list[tuple[int, EventRow]], list[Rejected]]:
        """Rows with their places in the request, and what does not fit."""
        rows: list[tuple[int, EventRow]] = []
        rejected: list[Rejected] = []
        for index, event in enumerate(body.events):
            try:
                rows.append((index, self._row(event, received_at_us, body.skew_us)))
            except _Unfit as unfit:
                rejected.append(Rejected(index, _readable_id(event), unfit.code, unfit.message))
        return rows, rejected

    def _row(self, event: Any, received_at_us: int, skew_us: int) -> EventRow:
        if not isinstance(event, dict):
            raise _Unfit("invalid", "an event must be a JSON object")
        _check_shape(event)
        sent_us, occurred_at_us = self._occurred(event["occurred_at"], received_at_us, skew_us)
        return EventRow(
            event_id=event["event_id"],
            user_key=user_key(event.get("user_id"), event.get("visitor_id")),
            item_id=event.get("item_id"),
            action=self._action(event),
            event_value=None if event.get("event_value") is None else float(event["event_value"]),
            occurred_at_us=occurred_at_us,
            received_at_us=received_at_us,
            session_id=event.get("session_id"),
            recommendation_id=event.get("recommendation_id"),
            position=_position(event.get("position")),
            impression=_impression(event.get("impression")),
            properties=_properties(event.get("properties")),
            sent_day=sent_us // DAY_US if skew_us else None,
        )

    def _action(self, event: Mapping[str, Any]) -> int:
        kind, value = event["event_type"], event.get("event_value")
        if not isinstance(kind, str) or kind not in self._actions.event_types:
            known = ", ".join(self._actions.event_types)
            message = f"event_type {kind!a:.80} is not declared in silkrec.yaml; known: {known}"
            raise _Unfit("unknown_event_type", message)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value)):
            raise _Unfit("invalid", "event_value must be a finite number")
        action = self._actions.resolve(kind, value)
        if action is None:
            raise _Unfit("missing", f"an event of type {kind} needs an event_value: its meaning depends on it")
        return action.code

    def _occurred(self, text: Any, received_at_us: int, skew_us: int) -> tuple[int, int]:
        """By the client's clock, and by ours."""
        sent_us = _time_us(text)
        if sent_us is None:
            raise _Unfit("invalid", f"occurred_at must be {TIME_RULE}")
        at_us = sent_us + skew_us
        if at_us > received_at_us + self._tolerance_us:
            raise _Unfit(
                "in_the_future",
                f"occurred_at is {(at_us - received_at_us) / 1e6:.0f} s ahead of this server's clock "
                "(features.future_tolerance_s); send `sent_at` beside `events` to correct the client's clock",
            )
        if at_us < 0:
            raise _Unfit("invalid", "occurred_at must not be before 1970")
        return sent_us, at_us


def _check_shape(event: Mapping[str, Any]) -> None:
    for name in event.keys() - EVENT_FIELDS:
        raise _Unfit("extra_forbidden", f"unknown field {name!a:.80}; own data belongs into `properties`")
    for name in _REQUIRED:
        if event.get(name) is None:
            raise _Unfit("missing", f"{name} is missing")
    if event.get("user_id") is None and event.get("visitor_id") is None:
        raise _Unfit("missing", "give user_id or visitor_id")
    for name in _IDS:
        value = event.get(name)
        if value is not None and (not isinstance(value, str) or not is_id(value)):
            raise _Unfit("invalid", f"{name} must be {ID_RULE}")


def _position(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_POSITION):
        raise _Unfit("invalid", f"position must be a whole number from 0 to {MAX_POSITION}")
    return value


def _impression(value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_IMPRESSION:
        raise _Unfit("invalid", f"impression must be a list of at most {MAX_IMPRESSION} item ids")
    if not all(isinstance(item_id, str) and is_id(item_id) for item_id in value):
        raise _Unfit("invalid", f"each id in impression must be {ID_RULE}")
    return value


def _properties(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _Unfit("invalid", "properties must be a JSON object")
    if value and len(orjson.dumps(value)) > MAX_PROPERTIES_BYTES:
        raise _Unfit("too_large", f"properties must not exceed {MAX_PROPERTIES_BYTES} bytes of JSON")
    return value or None


def _time_us(text: Any) -> int | None:
    return parse_time(text) if isinstance(text, str) else None


def _finite(value: float) -> bool:
    """A whole number beyond a double's range is as little of use as an infinity."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _readable_id(event: Any) -> str | None:
    value = event.get("event_id") if isinstance(event, dict) else None
    return value[:256] if isinstance(value, str) else None


def _refused(pointer: str, message: str, code: str = "invalid") -> ValidationFailed:
    where = pointer or "the body"
    return ValidationFailed(f"{where}: {message}", errors=[FieldError(pointer, message, code)])


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")
