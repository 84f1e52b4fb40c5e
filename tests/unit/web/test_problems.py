from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.asgi import call, running
from tests.unit.web.example import build

JSON = {"content-type": "application/json"}


def ask(method: str, path: str, **options: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        async with running(build()) as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"] == "urn:silkrec:problem:" + body["code"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    return body


def test_an_error_of_the_tree_keeps_its_status_code_and_field_errors() -> None:
    body = problem_of(ask("GET", "/v1/errors/filter"))
    assert (body["status"], body["code"]) == (422, "filter_invalid")
    assert body["errors"] == [{"pointer": "/filter", "message": "no such field", "code": "invalid", "position": 7}]


@pytest.mark.parametrize(("name", "seconds"), [("database", "3"), ("overloaded", "1")])
def test_a_503_says_in_whole_seconds_when_to_come_back(name: str, seconds: str) -> None:
    answer = ask("GET", f"/v1/errors/{name}")
    assert problem_of(answer)["status"] == 503
    assert answer.headers["retry-after"] == seconds


@pytest.mark.parametrize("name", ["artifact", "unexpected"])
def test_a_fault_of_ours_shows_no_inner_detail(name: str) -> None:
    answer = ask("GET", f"/v1/errors/{name}")
    assert problem_of(answer)["status"] == 500
    assert "secret" not in answer.text
    assert "private" not in answer.text


def test_validation_errors_point_into_the_body() -> None:
    body = problem_of(ask("POST", "/v1/echo", json={"rows": [{"name": "a"}, {"nam/e": 1, "value": "x"}]}))
    assert (body["status"], body["code"]) == (422, "validation_failed")
    pointers = {error["pointer"] for error in body["errors"]}
    # The branches of the union `value` are pydantic's business and no part of the path.
    assert pointers == {"/rows/1/name", "/rows/1/value", "/rows/1/nam~1e"}


def test_validation_errors_never_repeat_what_was_sent() -> None:
    assert "hunter2" not in ask("POST", "/v1/echo", json={"rows": [{"name": 7, "value": "hunter2"}]}).text


def test_a_bad_query_parameter_is_told_apart_from_the_body() -> None:
    body = problem_of(ask("GET", "/v1/items/a?limit=0"))
    assert body["errors"][0]["in"] == "query"
    assert body["errors"][0]["pointer"] == "/limit"
    assert "query parameter limit" in body["detail"]


def test_a_missing_body_is_a_422() -> None:
    assert problem_of(ask("POST", "/v1/echo"))["status"] == 422


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("DELETE", "/v1/echo", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/items/a/", 404, "not_found"),
    ],
)
def test_routing_faults_are_problems_too(method: str, path: str, status: int, code: str) -> None:
    answer = ask(method, path)
    body = problem_of(answer)
    assert (body["status"], body["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"rows": NaN}', "line 1 column 10"),
        (b'{"rows": [Infinity]}', "line 1 column 11"),
        (b'{"properties": {"a": 1e999}}', "infinity"),
        (b'{"rows":\n  [1,]}', "line 2 column 5"),
        (b'{"rows": "\xff"}', "UTF-8"),
        (b'{"rows": "\\ud800"}', "surrogate"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": 1} {}', "line 1"),
    ],
)
def test_malformed_json_is_a_400_that_says_where(text: bytes, says: str) -> None:
    body = problem_of(ask("POST", "/v1/echo", content=text, headers=JSON))
    assert body["status"] == 400
    assert says in body["detail"]
    assert body["errors"][0]["code"] == "malformed_json"


@pytest.mark.parametrize("depth", [65, 500, 1900])
def test_deep_nesting_is_refused_and_never_a_500(depth: int) -> None:
    text = b'{"properties": {"a": ' + b"[" * depth + b"]" * depth + b"}}"
    assert problem_of(ask("POST", "/v1/echo", content=text, headers=JSON))["status"] == 400


def test_a_body_of_the_greatest_depth_comes_back_whole() -> None:
    depth = 62  # below the two objects around it
    text = b'{"rows":[],"properties":{"a":' + b"[" * depth + b"]" * depth + b"}}"
    answer = ask("POST", "/v1/echo", content=text, headers=JSON)
    assert answer.status_code == 200
    assert answer.content == text


def test_of_a_repeated_name_the_last_counts() -> None:
    answer = ask("POST", "/v1/echo", content=b'{"properties":{"a":1,"a":2}}', headers=JSON)
    assert answer.json()["properties"] == {"a": 2}


def test_a_body_without_a_content_type_is_read_as_json() -> None:
    assert ask("POST", "/v1/echo", content=b"{}").status_code == 200


def test_another_media_type_is_a_415() -> None:
    answer = ask("POST", "/v1/echo", content=b"{}", headers={"content-type": "text/plain"})
    assert problem_of(answer)["code"] == "unsupported_media_type"


def test_a_declared_body_over_the_limit_is_a_413() -> None:
    assert problem_of(ask("POST", "/v1/echo", content=b" " * 4097, headers=JSON))["code"] == "payload_too_large"


def test_a_chunked_body_over_the_limit_is_a_413() -> None:
    async def chunks() -> Any:
        for _ in range(5):
            yield b" " * 1000

    assert problem_of(ask("POST", "/v1/echo", content=chunks(), headers=JSON))["code"] == "payload_too_large"


def test_a_content_length_that_is_no_number_is_a_400() -> None:
    scope = {
        "type": "http", "method": "POST", "path": "/v1/echo", "raw_path": b"/v1/echo", "query_string": b"",
        "headers": [(b"content-length", b"-1")], "state": {},
    }  # fmt: skip
    assert asyncio.run(call(build(), scope, [b"{}"]))[0]["status"] == 400


def test_the_limit_may_differ_by_path() -> None:
    async def main() -> list[int]:
        app = build(limit=lambda scope: 10_000 if scope["path"] == "/v1/echo" else 10)
        async with running(app) as client:
            paths = ("/v1/echo", "/v1/beacon")
            return [(await client.post(path, content=b" " * 9000 + b"{}")).status_code for path in paths]

    assert asyncio.run(main()) == [200, 413]


def test_an_answer_that_breaks_in_the_middle_is_not_finished_as_if_whole() -> None:
    async def main() -> None:
        app = build()
        scope = {
            "type": "http", "method": "GET", "path": "/v1/half", "raw_path": b"/v1/half", "query_string": b"",
            "headers": [], "state": {},
        }  # fmt: skip
        with pytest.raises(RuntimeError, match="in the middle"):
            await call(app, scope, [b""])

    asyncio.run(main())
