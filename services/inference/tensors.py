"""Named tensors and parameters, from whichever door, to a checked InferRequest; answers to named tensors.

Every fault names the tensor, what it has and what it should have.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from services.inference.engine.request import InferAnswer, InferRequest
from services.inference.wire import DATATYPES, Array, Parameter
from shared.errors import FieldError, ValidationFailed

INPUTS: dict[str, str] = {
    "history_item": "INT32",
    "history_action": "INT8",
    "history_time": "INT64",
    "candidate": "INT32",
}
UNUSED = ("context", "profile")
"""Optional inputs of the API that no model of this release has weights for. They are refused by name rather than taken
and left out: whoever sends them expects other scores with them than without."""
_REQUIRED = ("history_item", "history_action", "history_time")
_PARAMETERS: dict[str, type] = {"user_key": str, "deadline_us": int, "priority": int, "request_time_s": int}
_INT64 = np.iinfo(np.int64)
MAX_ROWS = 65_536
MAX_CANDIDATES = 10_000
"""A batch cannot be interrupted: 10,000 candidates of a 100 row history take 70 ms on one core."""
MAX_PRIORITY = 9
DEFAULT_DEADLINE_US = 1_000_000
MAX_DEADLINE_US = 600_000_000


@dataclass(frozen=True, slots=True, eq=False)
class InputTensor:
    """As it came: `data` is already an array of `shape`."""

    name: str
    datatype: str
    data: Array


def array_of(name: str, datatype: str, shape: tuple[int, ...], raw: bytes, *, index: int) -> InputTensor:
    """From little-endian bytes. Raises ValidationFailed."""
    dtype = _dtype(name, datatype, index)
    _check_shape(name, shape, index)
    expected = int(np.prod(shape)) * dtype.itemsize
    if len(raw) != expected:
        raise _fault(index, name, "data", f"shape {list(shape)} {datatype} needs {expected} bytes, not {len(raw)}")
    return InputTensor(name, datatype, np.frombuffer(raw, dtype).reshape(shape))


def array_from(name: str, datatype: str, shape: tuple[int, ...], values: object, *, index: int) -> InputTensor:
    """From numbers, nested or flat in row-major order. Raises ValidationFailed."""
    dtype = _dtype(name, datatype, index)
    _check_shape(name, shape, index)
    try:
        array = np.asarray(values)
    except ValueError:
        raise _fault(index, name, "data", "the nested lists differ in length") from None
    if array.size == 0:
        array = array.astype(dtype)
    if array.dtype.kind not in "iu":
        raise _fault(index, name, "data", f"{datatype} takes whole numbers only")
    if array.size != int(np.prod(shape)):
        raise _fault(index, name, "data", f"shape {list(shape)} needs {int(np.prod(shape))} numbers, not {array.size}")
    bounds = np.iinfo(dtype)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise _fault(index, name, "data", f"a number lies outside {datatype} ({bounds.min} to {bounds.max})")
    return InputTensor(name, datatype, array.astype(dtype).reshape(shape))


def infer_request(
    inputs: Iterable[InputTensor], parameters: Mapping[str, Parameter], *, model_version: str
) -> InferRequest:
    """Raises ValidationFailed."""
    columns: dict[str, Array] = {}
    for index, tensor in enumerate(inputs):
        if tensor.name in columns:
            raise _fault(index, tensor.name, "name", "is given twice")
        columns[tensor.name] = tensor.data[0]
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise ValidationFailed(
            f"inputs lack {', '.join(missing)}", errors=[FieldError("/inputs", "missing", "missing")]
        )
    lengths = {name: len(columns[name]) for name in _REQUIRED}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValidationFailed(
            f"the history columns differ in length: {told}", errors=[FieldError("/inputs", "length", "invalid")]
        )
    values = {name: _parameter(name, value) for name, value in parameters.items()}
    deadline_us = int(values.get("deadline_us", DEFAULT_DEADLINE_US))
    return InferRequest(
        columns["history_item"],
        columns["history_action"],
        columns["history_time"],
        columns.get("candidate"),
        int(values.get("request_time_s", time.time())),
        min(deadline_us, MAX_DEADLINE_US),
        str(values.get("user_key", "")),
        model_version,
        min(max(int(values.get("priority", 0)), 0), MAX_PRIORITY),
    )


def answer_tensors(answer: InferAnswer, wanted: Collection[str] = ()) -> list[tuple[str, str, Array]]:
    """(name, datatype, [1, …]) of what the answer holds; of these only the `wanted` ones, when any are named."""
    return [tensor for tensor in _tensors(answer) if not wanted or tensor[0] in wanted]


def check_outputs(wanted: Iterable[str], *, ranks: bool) -> None:
    """Raises ValidationFailed for an output that this operation does not have."""
    known = ("scores", "scored") if ranks else ("user_vector",)
    for index, name in enumerate(wanted):
        if name not in known:
            raise ValidationFailed(
                f"output {name!r} is not given for these inputs; there is {', '.join(known)}",
                errors=[FieldError(f"/outputs/{index}/name", "unknown output", "unknown")],
            )


def _tensors(answer: InferAnswer) -> list[tuple[str, str, Array]]:
    if answer.user_vector is not None:
        return [("user_vector", "FP32", answer.user_vector[None])]
    scores, scored = answer.scores, answer.scored
    if scores is None or scored is None:
        raise ValueError("an answer holds a vector or scores")
    return [("scores", "FP32", scores[None]), ("scored", "BOOL", scored[None])]


def answer_parameters(answer: InferAnswer) -> dict[str, Parameter]:
    return {"reason": answer.reason, "cached_events": answer.cached_events, "model_version": answer.model_version}


def _dtype(name: str, datatype: str, index: int) -> np.dtype[np.integer]:
    wanted = INPUTS.get(name)
    if name in UNUSED:
        raise _fault(index, name, "name", "is not used by this model, and scores would not show it; leave it out")
    if wanted is None:
        raise _fault(index, name, "name", f"is no input of this model; it takes {', '.join(INPUTS)}")
    if datatype != wanted:
        raise _fault(index, name, "datatype", f"must be {wanted}, not {datatype!r}")
    return DATATYPES[wanted]


def _check_shape(name: str, shape: tuple[int, ...], index: int) -> None:
    limit = MAX_CANDIDATES if name == "candidate" else MAX_ROWS
    if len(shape) != 2 or shape[0] != 1 or not 0 <= shape[1] <= limit:
        raise _fault(index, name, "shape", f"must be [1, n] with n from 0 to {limit}, not {list(shape)}")


def _parameter(name: str, value: Parameter) -> Parameter:
    wanted = _PARAMETERS.get(name)
    if wanted is None:
        told = f"parameter {name} is unknown; known: {', '.join(_PARAMETERS)}"
        raise ValidationFailed(told, errors=[FieldError(f"/parameters/{name}", "unknown", "unknown")])
    if not isinstance(value, wanted) or isinstance(value, bool):
        kind = "a string" if wanted is str else "a whole number"
        told = f"parameter {name} must be {kind}"
        raise ValidationFailed(told, errors=[FieldError(f"/parameters/{name}", f"must be {kind}")])
    if isinstance(value, int) and not _INT64.min <= value <= _INT64.max:
        told = f"parameter {name} must fit into 64 bits"
        raise ValidationFailed(told, errors=[FieldError(f"/parameters/{name}", "must fit into 64 bits")])
    return value


def _fault(index: int, name: str, part: str, message: str) -> ValidationFailed:
    return ValidationFailed(
        f"input {name!r}: {part} {message}", errors=[FieldError(f"/inputs/{index}/{part}", message)]
    )
