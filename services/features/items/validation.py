"""Items are checked against the declared `item_fields`: a misspelt property is refused, not silently stored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from services.features.items.content import EMBEDDINGS_MAX, ItemContent, ItemPatch
from services.features.items.times import TIME_RULE, parse_time
from shared.errors import FieldError
from shared.schema import FieldType, ItemField

# Every recommender process holds the properties of every item: 1,000,000 items of this size would be 64 GB.
PROPERTIES_MAX_BYTES = 64 * 1024


def check_content(content: ItemContent) -> list[FieldError]:
    """What concerns the item as a whole, a patched one included: fields that must agree, and its size."""
    faults = []
    begins, ends = content.available_from_us, content.available_until_us
    if begins is not None and ends is not None and ends <= begins:
        faults.append(FieldError("/available_until", "must be later than available_from", "order"))
    if len(content.embeddings) > EMBEDDINGS_MAX:
        faults.append(FieldError("/embeddings", f"at most {EMBEDDINGS_MAX} embeddings", "too_many"))
    try:
        size = len(orjson.dumps(content.properties))
    except orjson.JSONEncodeError:
        size = PROPERTIES_MAX_BYTES + 1
    if size > PROPERTIES_MAX_BYTES:
        faults.append(FieldError("/properties", f"at most {PROPERTIES_MAX_BYTES} bytes as JSON", "too_large"))
    return faults


def check_patch(patch: ItemPatch, fields: Mapping[str, ItemField]) -> list[FieldError]:
    """What can be said of the changes before the item that they meet is known."""
    faults = check_properties(patch.properties or {}, fields, nulls=True)
    if "created_at" in patch.model_fields_set and patch.created_at is None:
        faults.append(FieldError("/created_at", "every item has an age; send another time, or leave it out", "null"))
    return faults


def check_properties(
    properties: Mapping[str, Any], fields: Mapping[str, ItemField], *, nulls: bool = False
) -> list[FieldError]:
    """`nulls`: a null takes a property away (PATCH), whether it is still declared or not."""
    return [fault for name, value in properties.items() if (fault := _property(name, value, fields, nulls))]


def _property(name: str, value: Any, fields: Mapping[str, ItemField], nulls: bool) -> FieldError | None:
    if value is None and nulls:
        return None
    declared = fields.get(name)
    if declared is not None:
        fits, what = _TYPES[declared.type]
        if fits(value):
            return None
        return FieldError(_pointer(name), f"must be {what}, as item_fields.{name} declares", "wrong_type")
    near = difflib.get_close_matches(name, fields, 1)
    hint = f"did you mean {near[0]}?" if near else "declare it under item_fields in silkrec.yaml"
    return FieldError(_pointer(name), f"{name[:64]!a} is no declared item field; {hint}", "undeclared_property")


def _pointer(name: str) -> str:
    return "/properties/" + name[:256].replace("~", "~0").replace("/", "~1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_timestamp(value: Any) -> bool:
    return isinstance(value, str) and parse_time(value) is not None


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
    "timestamp": (_is_timestamp, TIME_RULE),
}
