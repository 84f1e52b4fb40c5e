"""The doors' half of `many`: one message to many requests of the engine, and their answers to one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from services.inference import tensors, wire
from services.inference.engine.request import InferAnswer, InferRequest
from services.inference.many import CANDIDATE_LENGTHS, KEYS, LENGTHS, MOST_REQUESTS, MOST_ROWS
from services.inference.wire import Array
from shared.contracts.oip import oip_pb2 as pb
from shared.errors import SilkrecError, ValidationFailed

_HISTORY = ("history_item", "history_action", "history_time")
_INT32 = {LENGTHS: "INT32", CANDIDATE_LENGTHS: "INT32"}


def is_many(message: pb.ModelInferRequest) -> bool:
    return any(tensor.name == LENGTHS for tensor in message.inputs)


def requests(message: pb.ModelInferRequest) -> list[InferRequest]:
    """Raises ValidationFailed."""
    raw = {tensor.name: part for tensor, part in zip(message.inputs, message.raw_input_contents, strict=False)}
    if len(raw) != len(message.inputs) or KEYS not in raw:
        raise ValidationFailed(f"a message of many requests needs {KEYS}, and every input in raw_input_contents")
    keys = _keys(raw.pop(KEYS))
    columns = {name: _column(name, part) for name, part in raw.items()}
    rows = _slices(columns, LENGTHS, len(keys), _HISTORY)
    ranks = CANDIDATE_LENGTHS in columns
    chosen = _slices(columns, CANDIDATE_LENGTHS, len(keys), ("candidate",)) if ranks else [None] * len(keys)
    empty = [tensors.InputTensor(name, tensors.INPUTS[name], columns[name][:0][None]) for name in _HISTORY]
    common = tensors.infer_request(empty, wire.plain(message.parameters), model_version=message.model_version)
    item, action, time = (columns[name] for name in _HISTORY)
    return [
        replace(
            common,
            user_key=key,
            history_item=item[row],
            history_action=action[row],
            history_time=time[row],
            candidate=None if part is None else columns["candidate"][part],
        )
        for key, row, part in zip(keys, rows, chosen, strict=True)
    ]


def answer_tensors(
    asked: Sequence[InferRequest], answers: Sequence[InferAnswer | SilkrecError]
) -> list[tuple[str, str, Array]]:
    """(name, datatype, array); zeros for those that have an error."""
    found = next((answer for answer in answers if isinstance(answer, InferAnswer)), None)
    told = [("error", "BYTES", _texts([_error(answer) for answer in answers]))]
    if found is None:
        return told
    if found.user_vector is not None:
        empty = np.zeros_like(found.user_vector)
        vectors = [empty if isinstance(a, SilkrecError) or a.user_vector is None else a.user_vector for a in answers]
        return [("user_vector", "FP32", np.stack(vectors)), *told]
    heads = 0 if found.scores is None else found.scores.shape[1]
    scores, scored = [], []
    for request, answer in zip(asked, answers, strict=True):
        count = 0 if request.candidate is None else len(request.candidate)
        if isinstance(answer, SilkrecError) or answer.scores is None or answer.scored is None:
            scores.append(np.zeros((count, heads), np.float32))
            scored.append(np.zeros(count, np.bool_))
        else:
            scores.append(answer.scores)
            scored.append(answer.scored)
    return [
        ("scores", "FP32", np.concatenate(scores)[None]),
        ("scored", "BOOL", np.concatenate(scored)[None]),
        *told,
    ]


def _error(answer: InferAnswer | SilkrecError) -> str:
    return answer.detail if isinstance(answer, SilkrecError) else ""


def _texts(texts: Sequence[str]) -> Array:
    return np.array(texts, dtype=object)[None]


def _column(name: str, raw: bytes) -> Array:
    datatype = tensors.INPUTS.get(name) or _INT32.get(name)
    if datatype is None:
        raise ValidationFailed(f"{name} is no input of many requests")
    dtype = wire.DATATYPES[datatype]
    if len(raw) % dtype.itemsize or len(raw) > MOST_ROWS * dtype.itemsize:
        raise ValidationFailed(f"{name} has {len(raw)} bytes: whole numbers of {datatype}, {MOST_ROWS} at most")
    return np.frombuffer(raw, dtype)


def _slices(columns: Mapping[str, Array], lengths: str, count: int, names: Sequence[str]) -> list[slice]:
    """Where each of `count` requests lies in the columns `names`."""
    told = columns.get(lengths)
    if told is None or len(told) != count or count > MOST_REQUESTS or (count and told.min() < 0):
        raise ValidationFailed(f"{lengths} must hold one length for each of 1 to {MOST_REQUESTS} requests")
    ends = np.cumsum(told, dtype=np.int64)
    total = int(ends[-1]) if count else 0
    for name in names:
        if name not in columns or len(columns[name]) != total:
            raise ValidationFailed(f"{name} must hold the {total} values that {lengths} promises")
    most = tensors.MAX_CANDIDATES if lengths == CANDIDATE_LENGTHS else tensors.MAX_ROWS
    if count and told.max() > most:
        raise ValidationFailed(f"{lengths}: {told.max()} are more than {most} of one request")
    return [slice(int(end - length), int(end)) for end, length in zip(ends, told, strict=True)]


def _keys(raw: bytes) -> list[str]:
    try:
        return wire.strings(raw)
    except ValueError as error:
        raise ValidationFailed(f"{KEYS}: {error}") from None
