"""Numpy columns to Open Inference Protocol v2 messages and back. What the client and the gRPC door share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.contracts.oip import oip_pb2 as pb

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("i1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
MESSAGE_BYTES_IN = 4 * 1024 * 1024
"""65,536 history rows and 10,000 candidates are 0.9 MB."""
MESSAGE_BYTES_OUT = 16 * 1024 * 1024

BYTES = "BYTES"
"""Strings: of each its length in 4 little-endian bytes, then its UTF-8."""
TOOK_US = "took_us"
"""Answer parameter: the server's own part, so that a client learns what the way costs."""

Array = npt.NDArray[Any]
Parameter = bool | int | float | str


def parameters(values: Mapping[str, Parameter]) -> dict[str, pb.InferParameter]:
    return {name: _parameter(value) for name, value in values.items()}


def plain(values: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    """Parameters as Python values; one that says nothing is left out."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in values.items())
    return {name: getattr(value, field) for name, value, field in chosen if field is not None}


def request(
    model: str, version: str, tensors: Iterable[tuple[str, str, Array]], values: Mapping[str, Parameter]
) -> pb.ModelInferRequest:
    """`tensors` are (name, datatype, [N] or [1, …]); each column is copied once, into its bytes."""
    inputs, raw = [], []
    for name, datatype, array in tensors:
        shape = array.shape if array.ndim > 1 else (1, *array.shape)
        inputs.append(pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape))
        raw.append(_raw(array, datatype))
    return pb.ModelInferRequest(
        model_name=model, model_version=version, parameters=parameters(values), inputs=inputs, raw_input_contents=raw
    )


def response(
    model: str,
    version: str,
    request_id: str,
    tensors: Sequence[tuple[str, str, Array]],
    values: Mapping[str, Parameter],
) -> pb.ModelInferResponse:
    outputs = [
        pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=array.shape)
        for name, datatype, array in tensors
    ]
    return pb.ModelInferResponse(
        model_name=model,
        model_version=version,
        id=request_id,
        parameters=parameters(values),
        outputs=outputs,
        raw_output_contents=[_raw(array, datatype) for _, datatype, array in tensors],
    )


def outputs(message: pb.ModelInferResponse) -> dict[str, Array]:
    """Read-only views of the message's bytes. Raises ValueError when shape and bytes disagree."""
    if len(message.outputs) != len(message.raw_output_contents):
        raise ValueError("outputs and raw_output_contents differ in number")
    found = {}
    for tensor, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        if tensor.datatype == BYTES:
            found[tensor.name] = np.array(strings(raw), dtype=object).reshape(tuple(tensor.shape))
            continue
        if tensor.datatype not in DATATYPES:
            raise ValueError(f"output {tensor.name} has the unknown datatype {tensor.datatype}")
        found[tensor.name] = np.frombuffer(raw, DATATYPES[tensor.datatype]).reshape(tuple(tensor.shape))
    return found


def strings(raw: bytes) -> list[str]:
    """Of a BYTES tensor. Raises ValueError for lengths that do not add up and for what is no UTF-8."""
    found, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise ValueError("the lengths of a BYTES tensor and its bytes disagree")
        found.append(raw[at + 4 : end].decode())
        at = end
    return found


def _raw(array: Array, datatype: str) -> bytes:
    if datatype != BYTES:
        return array.astype(DATATYPES[datatype], copy=False).tobytes()
    encoded = [str(text).encode() for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _parameter(value: Parameter) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(string_param=value)
