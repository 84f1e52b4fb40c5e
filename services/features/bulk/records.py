"""Rows of a file as items and as profiles: cells become the declared types, then the API's own checks decide."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa
from pydantic import ValidationError

from services.features.bulk.plan import Plan
from services.features.bulk.rejects import Reject
from services.features.bulk.sources import Chunk
from services.features.bulk.values import TimeUnit, as_array, decide_unit, numbers, texts, times_us
from services.features.items.content import ItemContent, ItemRowBody
from services.features.items.times import format_time
from services.features.items.validation import check_content, check_properties
from services.features.users.profiles import ProfileWrite
from services.features.users.validation import check_profile
from shared.errors import FieldError
from shared.identity import ID_RULE, is_id, user_key
from shared.schema import FieldType, Schema

CORE_TYPES: Mapping[str, FieldType] = {
    "item_id": "string", "item_type": "string", "title": "string", "categories": "strings", "is_hidden": "boolean",
    "available_from": "timestamp", "available_until": "timestamp", "price": "number", "currency": "string",
    "created_at": "timestamp", "user_id": "string", "segments": "strings",
}  # fmt: skip
DEFAULT_SEPARATOR = "|"
_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})


class RecordReader:
    """`splits`: field -> what separates the entries of its lists, where it is not `|`. `units`: field -> unit of its
    times. Immutable."""

    def __init__(
        self, plan: Plan, schema: Schema, *, units: Mapping[str, TimeUnit], splits: Mapping[str, str],
        empty_is_missing: bool,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._schema = schema
        self._units = units
        self._splits = splits
        self._empty_is_missing = empty_is_missing

    def items(self, chunk: Chunk) -> tuple[list[tuple[int, str, ItemContent]], list[Reject]]:
        """(row, item_id, content) of each item, and what is none."""
        found: list[tuple[int, str, ItemContent]] = []
        rejects: list[Reject] = []
        for place, body in enumerate(self._bodies(chunk)):
            row = int(chunk.rows[place])
            try:
                parsed = ItemRowBody.model_validate(body)
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False, include_input=False)[0]
                where = ".".join(str(step) for step in first["loc"])
                rejects.append(Reject(row, str(first["type"]), f"{where}: {first['msg']}", self._raw(chunk, place)))
                continue
            content = parsed.content()
            faults = check_properties(content.properties, self._schema.item_fields) + check_content(content)
            if faults:
                rejects.append(_rejected(row, faults, self._raw(chunk, place)))
            else:
                found.append((row, parsed.item_id, content))
        return found, rejects

    def users(self, chunk: Chunk) -> tuple[list[tuple[int, ProfileWrite]], list[Reject]]:
        found: list[tuple[int, ProfileWrite]] = []
        rejects: list[Reject] = []
        for place, body in enumerate(self._bodies(chunk)):
            row = int(chunk.rows[place])
            user_id, properties = body.get("user_id"), body.get("properties", {})
            segments = body.get("segments", [])
            faults = _user_faults(user_id, properties, segments)
            faults = faults or check_profile(properties, segments, self._schema.user_fields)
            if faults:
                rejects.append(_rejected(row, faults, self._raw(chunk, place)))
            else:
                found.append((row, ProfileWrite(user_key(str(user_id), None), properties, tuple(segments))))
        return found, rejects

    def _bodies(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Each row as the API would get it. A cell that is not of its field's type stays what it is."""
        bodies: list[dict[str, Any]] = [{} for _ in range(len(chunk.rows))]
        given = {name: chunk.columns[column] for name, column in self._plan.columns.items()}
        given |= {name: [text] * len(chunk.rows) for name, text in self._plan.constants.items()}
        # The whole object first: single properties beside it are the more particular ones.
        for name in sorted(given, key=lambda name: name != "properties"):
            group, _, key = name.rpartition(".")
            if name not in CORE_TYPES and not group and name != "properties":
                group, key = "properties", name
            values = self._converted(name if not group else key, group, given[name])
            for body, value in zip(bodies, values, strict=True):
                if value is None:
                    continue
                if group:
                    holder = body.setdefault(group, {})
                    if isinstance(holder, dict):
                        holder[key] = value
                else:
                    body[name] = value
        return bodies

    def _converted(self, name: str, group: str, column: Any) -> list[Any]:
        if group == "embeddings" or name == "properties":
            return [_parsed(cell) for cell in self._cells(column)]
        kind = CORE_TYPES.get(name) if not group else self._declared(name)
        if kind == "strings":
            separator = self._splits.get(name, DEFAULT_SEPARATOR)
            return [_split(cell, separator) for cell in self._cells(column)]
        if kind == "boolean":
            return [_boolean(cell) for cell in self._cells(column)]
        if kind is None:
            return self._cells(column)
        array = as_array(column, empty_is_missing=self._empty_is_missing)
        if kind == "string":
            text = texts(array)
            return _chosen(text.values.to_pylist(), text.present, text.sound, array)
        if kind == "number":
            number = numbers(array)
            values = [int(value) if value.is_integer() else value for value in number.values.tolist()]
            return _chosen(values, number.present, number.sound, array)
        time = times_us(array, self._units.get(name, "s"))
        return _chosen([format_time(us) for us in time.values.tolist()], time.present, time.sound, array)

    def _declared(self, name: str) -> FieldType | None:
        fields: Mapping[str, Any] = self._schema.item_fields if self._plan.kind == "items" else self._schema.user_fields
        return fields[name].type if name in fields else None

    def _cells(self, column: Any) -> list[Any]:
        cells = column.to_pylist() if isinstance(column, pa.Array) else list(column)
        return [None if cell == "" and self._empty_is_missing else cell for cell in cells]

    def _raw(self, chunk: Chunk, place: int) -> dict[str, Any]:
        raw = {}
        for column in self._plan.columns.values():
            cell = chunk.columns[column][place]
            raw[column] = cell.as_py() if isinstance(cell, pa.Scalar) else cell
        return raw


def decide_units(plan: Plan, schema: Schema, chunk: Chunk, unit: TimeUnit) -> dict[str, TimeUnit]:
    """For each field that holds times, by the first rows of the file."""
    declared: Mapping[str, Any] = schema.item_fields if plan.kind == "items" else schema.user_fields
    units: dict[str, TimeUnit] = {}
    for name, column in plan.columns.items():
        key = name.rpartition(".")[2]
        kind = CORE_TYPES.get(name) or (declared[key].type if key in declared else None)
        if kind == "timestamp":
            units[key] = unit if unit != "auto" else decide_unit(as_array(chunk.columns[column], empty_is_missing=True))
    return units


def _user_faults(user_id: Any, properties: Any, segments: Any) -> list[FieldError]:
    if not isinstance(user_id, str) or not is_id(user_id):
        return [FieldError("/user_id", f"must be {ID_RULE}", "invalid")]
    if not isinstance(properties, dict):
        return [FieldError("/properties", "must be a JSON object", "invalid")]
    if not isinstance(segments, list) or not all(isinstance(entry, str) for entry in segments):
        return [FieldError("/segments", "must be a list of strings", "invalid")]
    return []


def _rejected(row: int, faults: list[FieldError], raw: dict[str, Any]) -> Reject:
    where = faults[0].pointer.lstrip("/").replace("/", ".")
    return Reject(row, faults[0].code, f"{where}: {faults[0].message}", raw)


def _chosen(values: list[Any], present: Any, sound: Any, array: pa.Array) -> list[Any]:
    if sound.all():
        return values
    raw = array.to_pylist()
    verdicts = zip(values, present.tolist(), sound.tolist(), raw, strict=True)
    return [value if good else (cell if there else None) for value, there, good, cell in verdicts]


def _boolean(cell: Any) -> Any:
    if isinstance(cell, bool) or cell is None:
        return cell
    text = str(cell).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else cell


def _split(cell: Any, separator: str) -> Any:
    """A list as it is; `["a", "b"]` of JSON and `['a', 'b']` of Python's print; else parts."""
    if not isinstance(cell, str):
        return cell
    if cell.startswith("[") and cell.endswith("]"):
        whole = _parsed(cell)
        if isinstance(whole, list):
            return whole
    return [part for part in (part.strip() for part in cell.split(separator)) if part]


def _parsed(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    try:
        return orjson.loads(cell)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
