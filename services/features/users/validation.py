"""Profiles are checked against the declared `user_fields`: a misspelt property is refused, not silently stored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from shared.errors import FieldError
from shared.identity import ID_RULE, is_id
from shared.schema import FieldType, UserField

# A profile travels in Redis beside the history on every request: 16 KB is more than half of a full history.
PROFILE_MAX_BYTES = 16 * 1024
SEGMENTS_MAX = 64


def check_profile(
    properties: Mapping[str, Any], segments: Sequence[str], fields: Mapping[str, UserField], *, nulls: bool = False
) -> list[FieldError]:
    """Every fault, with pointers from the profile's own root. `nulls`: a null takes a property away (PATCH)."""
    faults = [fault for name, value in properties.items() if (fault := _property(name, value, fields, nulls))]
    faults += [
        FieldError(f"/segments/{place}", f"a segment is {ID_RULE}", "segment")
        for place, segment in enumerate(segments)
        if not is_id(segment)
    ]
    if len(segments) > SEGMENTS_MAX:
        faults.append(FieldError("/segments", f"at most {SEGMENTS_MAX} segments", "too_many"))
    if not faults and len(orjson.dumps([properties, list(segments)])) > PROFILE_MAX_BYTES:
        faults.append(FieldError("/properties", f"at most {PROFILE_MAX_BYTES} bytes as JSON", "too_large"))
    return faults


def _property(name: str, value: Any, fields: Mapping[str, UserField], nulls: bool) -> FieldError | None:
    pointer = "/properties/" + name.replace("~", "~0").replace("/", "~1")
    declared = fields.get(name)
    if declared is None:
        near = difflib.get_close_matches(name, fields, 1)
        hint = f"did you mean {near[0]}?" if near else "declare it under user_fields in silkrec.yaml"
        return FieldError(pointer, f"{name[:64]!a} is no declared user field; {hint}", "undeclared_property")
    if value is None and nulls:
        return None
    fits, what = _TYPES[declared.type]
    if fits(value):
        return None
    return FieldError(pointer, f"must be {what}, as user_fields.{name} declares", "wrong_type")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_timestamp(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


_TYPES: dict[FieldType, tuple[Callable[[Any], bool], str]] = {
    "string": (_is_string, "a string"),
    "number": (_is_number, "a finite number"),
    "boolean": (_is_boolean, "true or false"),
    "strings": (_is_strings, "a list of strings"),
    "timestamp": (_is_timestamp, "an RFC 3339 time with its offset, such as 2026-01-31T12:00:00Z"),
}
