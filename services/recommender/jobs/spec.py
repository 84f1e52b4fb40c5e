"""What may be asked of a job, field by field: the body of POST /v1/jobs, of a schedule and of `silkrec jobs submit`.

    {"type": "slate", "params": {"scene": "home", "segment": "user.country = \"DE\"", "count": 10}}

Whose slates: exactly one of `segment` (an expression over users, or `*` for everybody known), `user_ids` and
`visitor_ids`, `lists`, and `file` (Parquet or JSON Lines below jobs.input_dir).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import Field, ValidationError, model_validator

from services.recommender.catalogue.columns import parse_time
from services.recommender.filters import compile_filter, compile_segment
from services.recommender.jobs.store.jobs import FORMAT, can_read
from services.recommender.jobs.work import SlateAsk, SlateSpec
from services.recommender.routes.requests import MAX_COUNT, MAX_INPUT_LIST, Expression, Id, Short, Strict
from shared.errors import ConfigurationError, FieldError, FilterInvalid, NotFound, ValidationFailed
from shared.identity import user_key
from shared.schema import Schema

MAX_INLINE_USERS = 10_000
MAX_INLINE_LISTS = 1_000
EVERYBODY = "*"
Kind = Literal["rerank", "slate", "prefill", "export"]
Output = Literal["database", "parquet", "redis"]
# Digests began with the format inside; it stays what it was then, whatever FORMAT becomes.
_DIGESTED = 1
KINDS: tuple[Kind, ...] = ("rerank", "slate", "prefill", "export")
OUTPUTS: dict[Kind, tuple[Output, ...]] = {
    "rerank": ("database",),
    "slate": ("database", "redis"),
    "prefill": ("redis",),
    "export": ("parquet",),
}


class GivenList(Strict):
    user_id: Id | None = None
    visitor_id: Id | None = None
    item_ids: list[Id] = Field(min_length=1, max_length=MAX_INPUT_LIST)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if (self.user_id is None) == (self.visitor_id is None):
            raise ValueError("give either `user_id` or `visitor_id`")
        return self


class JobParams(Strict):
    scene: Short = "home"
    count: Annotated[int | None, Field(ge=1, le=MAX_INPUT_LIST)] = Field(
        None, description=f"items a slate: 10 when left out, {MAX_COUNT} at most; of a rerank all of its list"
    )
    segment: Expression | None = Field(None, description=f'over users: `user.country = "DE"`; `{EVERYBODY}`: all')
    user_ids: list[Id] = Field([], max_length=MAX_INLINE_USERS)
    visitor_ids: list[Id] = Field([], max_length=MAX_INLINE_USERS)
    lists: list[GivenList] = Field([], max_length=MAX_INLINE_LISTS, description="of a rerank")
    file: Short | None = Field(
        None, description="path below jobs.input_dir: *.parquet or *.jsonl with user_id or visitor_id, and item_ids"
    )
    filter: Expression | None = None
    diversity: float | None = Field(None, ge=0, le=1, description="the scene's when left out")
    at: Short | None = Field(None, description="RFC 3339: the time that slates are made for; that of computing else")
    seed: int | None = Field(None, ge=0, lt=2**63)
    outputs: list[Output] | None = Field(None, min_length=1, max_length=3, description="the type's own when left out")


class JobBody(Strict):
    """Strict as every body; `read_body` says what is wrong with it."""

    type: Kind
    params: JobParams = JobParams()

    def outputs(self) -> tuple[Output, ...]:
        chosen = self.params.outputs
        return OUTPUTS[self.type] if chosen is None else tuple(dict.fromkeys(chosen))

    def slate_spec(self) -> SlateSpec:
        params = self.params
        count = params.count or (MAX_INPUT_LIST if self.type == "rerank" else 10)
        now_us = None if params.at is None else parse_time(params.at)
        now_s = None if now_us is None else now_us // 1_000_000
        return SlateSpec(params.scene, count, params.filter, params.diversity, now_s, params.seed)

    def inline(self) -> Iterator[SlateAsk]:
        """Users that stand in the body itself, in its order; one may come twice."""
        params = self.params
        for listed in params.lists:
            yield SlateAsk(user_key(listed.user_id, listed.visitor_id), tuple(listed.item_ids))
        for one in params.user_ids:
            yield SlateAsk(user_key(one, None))
        for one in params.visitor_ids:
            yield SlateAsk(user_key(None, one))

    def stored(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.model_dump(mode="json", exclude_unset=True)}

    def digest(self) -> str:
        """The same in every release for the same body: a key may come again through N-1, or fire there too."""
        told = {**self.stored(), "format": _DIGESTED}
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def read_body(content: Any) -> JobBody:
    """Of a schedule, a file or a row. Raises ValidationFailed with pointers."""
    try:
        return JobBody.model_validate(content)
    except ValidationError as error:
        faults = [FieldError("".join(f"/{p}" for p in one["loc"]), one["msg"], one["type"]) for one in error.errors()]
        raise ValidationFailed("; ".join(f"{one.pointer} {one.message}" for one in faults), errors=faults) from None


def read_stored(content: dict[str, Any]) -> JobBody:
    """Raises ConfigurationError for a row of a newer release."""
    if not can_read(content):
        raise ConfigurationError(
            f"the job was written in format {content.get('format')}, and this release reads {FORMAT}"
        )
    return read_body({name: value for name, value in content.items() if name != "format"})


def check(body: JobBody, schema: Schema, *, files: bool) -> None:
    """What pydantic cannot know. `files`: jobs.input_dir is set. Raises NotFound, ValidationFailed, FilterInvalid."""
    params = body.params
    if params.scene not in schema.scenes:
        raise NotFound(f"there is no scene {params.scene!a}; declared: {', '.join(sorted(schema.scenes))}")
    _one_source(body)
    if params.file is not None and not files:
        raise _fault("file", "this installation reads no files: jobs.input_dir is not set")
    if params.count is not None and params.count > MAX_COUNT and body.type != "rerank":
        raise _fault("count", f"is at most {MAX_COUNT}")
    if params.at is not None and parse_time(params.at) is None:
        raise _fault("at", "is no RFC 3339 time, e.g. 2026-01-31T12:00:00Z")
    _expressions(params, schema)


def _one_source(body: JobBody) -> None:
    params = body.params
    given = {
        "segment": params.segment is not None,
        "user_ids": bool(params.user_ids or params.visitor_ids),
        "lists": bool(params.lists),
        "file": params.file is not None,
    }
    named = [name for name, there in given.items() if there]
    if len(named) != 1:
        raise _fault(
            named[-1] if named else "segment", f"give exactly one of {', '.join(given)}; got {named or 'none'}"
        )
    if body.type == "rerank" and named[0] not in ("lists", "file"):
        raise _fault(named[0], "a rerank needs the items to rank: give lists or file")
    if body.type != "rerank" and named[0] == "lists":
        raise _fault("lists", "are of a rerank; give user_ids")


def _expressions(params: JobParams, schema: Schema) -> None:
    if params.segment not in (None, EVERYBODY):
        with _below("/params/segment"):
            compile_segment(str(params.segment), schema)
    if params.filter is not None:
        with _below("/params/filter"):
            compile_filter(params.filter, schema).bind({})


class _below:  # noqa: N801  (reads as the statement that it is)
    """Moves a filter's faults to where the expression stands in the body."""

    def __init__(self, pointer: str) -> None:
        self._pointer = pointer

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, FilterInvalid):
            raise FilterInvalid(error.detail, errors=_moved(error.errors, self._pointer)) from None


def _moved(faults: Sequence[FieldError], pointer: str) -> list[FieldError]:
    return [FieldError(pointer, fault.message, fault.code, fault.position) for fault in faults]


def _fault(field: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"{field} {message}", errors=[FieldError(f"/params/{field}", message)])
