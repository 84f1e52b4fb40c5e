"""What a door refuses, and that it names the tensor."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference import tensors
from services.inference.engine.request import InferAnswer, InferRequest
from services.inference.tensors import InputTensor, array_from, array_of, infer_request
from services.inference.wire import Array, Parameter
from shared.errors import ValidationFailed


def column(name: str, values: object, dtype: str, *, index: int = 0) -> InputTensor:
    array: Array = np.asarray(values, dtype)
    return array_of(name, tensors.INPUTS[name], (1, len(array)), array.tobytes(), index=index)


def inputs(rows: int = 3, candidates: int | None = 2) -> list[InputTensor]:
    found = [
        column("history_item", range(rows), "<i4"),
        column("history_action", [1] * rows, "i1"),
        column("history_time", range(rows), "<i8"),
    ]
    return found if candidates is None else [*found, column("candidate", range(candidates), "<i4")]


def asked(parameters: dict[str, Parameter] | None = None, **sizes: int | None) -> InferRequest:
    return infer_request(inputs(**sizes), parameters or {}, model_version="")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [0, 1, 2048])
def test_a_history_of_any_length_arrives_as_it_was_sent(rows: int) -> None:
    request = asked(rows=rows)
    assert request.history_item.tolist() == list(range(rows))
    assert request.history_time.dtype == np.int64


def test_without_candidates_it_is_encoding_and_with_none_of_them_it_is_ranking() -> None:
    assert asked(candidates=None).candidate is None
    ranked = asked(candidates=0).candidate
    assert ranked is not None
    assert len(ranked) == 0


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "raw", "part"),
    [
        ("history_item", "INT64", (1, 1), b"\0" * 8, "datatype"),
        ("history_item", "", (1, 1), b"\0" * 4, "datatype"),
        ("candidates", "INT32", (1, 1), b"\0" * 4, "name"),
        ("", "INT32", (1, 1), b"\0" * 4, "name"),
        ("candidate", "INT32", (1,), b"\0" * 4, "shape"),
        ("candidate", "INT32", (), b"\0" * 4, "shape"),
        ("candidate", "INT32", (2, 1), b"\0" * 8, "shape"),
        ("candidate", "INT32", (1, -1), b"", "shape"),
        ("candidate", "INT32", (1, 2**62), b"", "shape"),
        ("candidate", "INT32", (1, tensors.MAX_CANDIDATES + 1), b"", "shape"),
        ("history_time", "INT64", (1, tensors.MAX_ROWS + 1), b"", "shape"),
        ("candidate", "INT32", (1, 2), b"\0" * 7, "data"),
        ("candidate", "INT32", (1, 0), b"\0", "data"),
    ],
)
def test_a_bad_tensor_is_refused_by_name(
    name: str, datatype: str, shape: tuple[int, ...], raw: bytes, part: str
) -> None:
    with pytest.raises(ValidationFailed) as failed:
        array_of(name, datatype, shape, raw, index=2)
    assert repr(name) in failed.value.detail
    assert failed.value.errors[0].pointer == f"/inputs/2/{part}"


@pytest.mark.parametrize(
    "values",
    [[1.5, 2], [True, False], ["1", "2"], [None, 1], [[1], [2, 3]], [1], [1, 2, 3], [2**31, 0], [2**70, 0], [{}, {}]],
)
def test_json_numbers_that_do_not_fit_are_refused_by_name(values: list[object]) -> None:
    with pytest.raises(ValidationFailed, match="'candidate'") as failed:
        array_from("candidate", "INT32", (1, 2), values, index=3)
    assert failed.value.errors[0].pointer == "/inputs/3/data"


def test_json_numbers_may_be_flat_or_nested() -> None:
    flat = array_from("candidate", "INT32", (1, 2), [5, 6], index=0).data
    nested = array_from("candidate", "INT32", (1, 2), [[5, 6]], index=0).data
    assert flat.tolist() == nested.tolist() == [[5, 6]]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@given(json_values)
def test_whatever_json_holds_is_an_array_or_a_clear_refusal(values: object) -> None:
    with contextlib.suppress(ValidationFailed):
        assert array_from("candidate", "INT32", (1, 2), values, index=0).data.shape == (1, 2)


def test_missing_and_unequal_columns_are_named() -> None:
    with pytest.raises(ValidationFailed, match="history_action, history_time"):
        infer_request(inputs()[:1], {}, model_version="")
    short = column("history_time", [1], "<i8")
    with pytest.raises(ValidationFailed, match="history_item 3, history_action 3, history_time 1"):
        infer_request([*inputs()[:2], short], {}, model_version="")
    with pytest.raises(ValidationFailed, match="'candidate': name is given twice"):
        infer_request([*inputs(), column("candidate", [1], "<i4")], {}, model_version="")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline_us", float("nan")),
        ("deadline_us", 1.0),
        ("deadline_us", True),
        ("deadline_us", 2**64),
        ("request_time_s", 2**63),
        ("request_time_s", "now"),
        ("priority", "high"),
        ("user_key", 5),
        ("temperature", 1),
    ],
)
def test_a_bad_parameter_is_refused_by_name(name: str, value: Parameter) -> None:
    with pytest.raises(ValidationFailed, match=name) as failed:
        asked({name: value})
    assert failed.value.errors[0].pointer == f"/parameters/{name}"


def test_parameters_have_bounds_rather_than_surprises() -> None:
    assert asked({"priority": 99}).priority == tensors.MAX_PRIORITY
    assert asked({"priority": -1}).priority == 0
    assert asked({"deadline_us": 2**62}).deadline_us == tensors.MAX_DEADLINE_US
    assert asked().deadline_us == tensors.DEFAULT_DEADLINE_US


def test_only_the_outputs_that_were_asked_for_are_given() -> None:
    answer = InferAnswer("m-1", scores=np.zeros((2, 1), np.float32), scored=np.ones(2, np.bool_))
    assert [name for name, _, _ in tensors.answer_tensors(answer)] == ["scores", "scored"]
    assert [name for name, _, _ in tensors.answer_tensors(answer, ["scored"])] == ["scored"]
    tensors.check_outputs(["user_vector"], ranks=False)
    with pytest.raises(ValidationFailed, match="user_vector"):
        tensors.check_outputs(["user_vector"], ranks=True)
