"""What the Open Inference Protocol has no calls for, over gRPC: forgetting a user and content of new items.

A service of its own on the same addresses, so that whoever reaches an engine to ask it can also tell it. Messages are
the JSON of the REST doors: one schema, checked once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.inference.caller import CallerCheck
from services.inference.contents import ItemContents
from services.inference.engine.engine import Engine
from services.inference.grpc import Context, abort
from services.inference.infer_call import request_of
from services.inference.metrics import DoorMetrics
from services.inference.routes.items import UpsertAnswer, UpsertBody
from shared.contracts.inference import CONTROL_SERVICE, FORGET, UPSERT_ITEMS
from shared.errors import FieldError, SilkrecError, ValidationFailed

B = TypeVar("B", bound=BaseModel)
Method = Callable[[bytes], Awaitable[BaseModel]]


class ForgetBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    user_key: str = Field(min_length=1)


class ForgetAnswer(BaseModel):
    """History rows that were kept of the user."""

    rows: int


class Control:
    """The calls are for `callers`, as inference is."""

    def __init__(self, engine: Engine, contents: ItemContents, callers: CallerCheck, doors: DoorMetrics) -> None:
        self._engine = engine
        self._contents = contents
        self._callers = callers
        self._doors = doors

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        methods = {FORGET: self._call(self._forget), UPSERT_ITEMS: self._call(self._upsert)}
        return grpc.method_handlers_generic_handler(CONTROL_SERVICE, methods)

    def _call(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(message: bytes, context: Context) -> bytes:
            metadata = context.invocation_metadata()
            try:
                with request_of(CONTROL_SERVICE, metadata):
                    self._callers.check(context.peer(), metadata)
                    answer = await method(message)
            except SilkrecError as error:
                await abort(context, error)
            return answer.model_dump_json().encode()

        return grpc.unary_unary_rpc_method_handler(call)

    async def _forget(self, message: bytes) -> ForgetAnswer:
        rows = await self._engine.forget(_parsed(ForgetBody, message).user_key)
        self._doors.forgot(rows)
        return ForgetAnswer(rows=rows)

    async def _upsert(self, message: bytes) -> UpsertAnswer:
        told = await self._contents.upsert(_parsed(UpsertBody, message).new_items())
        self._doors.upserted(told)
        return UpsertAnswer.model_validate(told)


def _parsed(kind: type[B], message: bytes) -> B:
    """Raises ValidationFailed."""
    try:
        return kind.model_validate_json(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        pointer = "".join(f"/{step}" for step in first["loc"])
        raise ValidationFailed(f"{pointer}: {first['msg']}", errors=[FieldError(pointer, first["msg"])]) from None
