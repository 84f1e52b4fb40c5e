from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.cli import openapi

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.merged()


def test_the_committed_document_is_what_the_routes_say(document: dict[str, Any]) -> None:
    assert openapi.FILE.read_bytes() == openapi.render(document), "run `silkrec openapi` and commit openapi.json"


def test_the_document_is_the_same_each_time(document: dict[str, Any]) -> None:
    assert openapi.render(openapi.merged()) == openapi.render(document)


def test_it_holds_the_serving_and_the_writing_half(document: dict[str, Any]) -> None:
    for path in ("/v1/recommend", "/v1/rank", "/v1/events", "/v1/items/{item_id}", "/health", "/ready"):
        assert path in document["paths"]


def test_nothing_that_was_released_is_lost(document: dict[str, Any]) -> None:
    """Against the document of the newest release tag, or else of the first commit that has one."""
    base = _released()
    if base is None:
        pytest.skip("this is no clone with a history to compare with")
    assert openapi.breaking_changes(base, document) == []


def _released() -> dict[str, Any] | None:
    def git(*words: str) -> bytes | None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        try:
            done = subprocess.run(
                ["git", *words], cwd=ROOT, env=environment, capture_output=True, timeout=30, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("describe", "--tags", "--abbrev=0", "--match", "v*")
    text = git("show", f"{revision.decode()}:openapi.json") if revision else None
    if text is None:
        commits = (git("log", "--format=%H", "--reverse", "--", "openapi.json") or b"").split()
        text = git("show", f"{commits[0].decode()}:openapi.json") if commits else None
    return orjson.loads(text) if text else None


BASE: dict[str, Any] = {
    "paths": {
        "/v1/a": {
            "post": {
                "parameters": [{"in": "query", "name": "limit", "required": False}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}}},
                "responses": {"200": {}},
            }
        }
    },
    "components": {
        "schemas": {
            "Ask": {"properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}},
            "Answer": {"properties": {"m": {"type": "string"}}},
            "Colour": {"enum": ["red", "blue"]},
        }
    },
}


def _gain(new: dict[str, Any]) -> None:
    new["paths"]["/v1/b"] = {"get": {"responses": {"200": {}}}}
    new["components"]["schemas"]["Ask"]["properties"]["more"] = {"type": "string"}
    new["components"]["schemas"]["Answer"]["required"] = ["m"]
    new["components"]["schemas"]["Colour"]["enum"].append("green")


def test_what_the_api_gains_breaks_nobody() -> None:
    new = copy.deepcopy(BASE)
    _gain(new)
    assert openapi.breaking_changes(BASE, new) == []


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "POST /v1/a is gone": lambda new: new["paths"]["/v1/a"].pop("post"),
    "query parameter limit is gone": lambda new: new["paths"]["/v1/a"]["post"]["parameters"].clear(),
    "query parameter limit is now required": lambda new: new["paths"]["/v1/a"]["post"]["parameters"][0].update(
        required=True
    ),
    "answer 200 is gone": lambda new: new["paths"]["/v1/a"]["post"]["responses"].clear(),
    "schema Answer is gone": lambda new: new["components"]["schemas"].pop("Answer"),
    "Answer.m is gone": lambda new: new["components"]["schemas"]["Answer"]["properties"].clear(),
    "Ask.n was ['integer', 'null'], is ['integer']": lambda new: new["components"]["schemas"]["Ask"][
        "properties"
    ].update(n={"type": "integer"}),
    "Ask.n is now required": lambda new: new["components"]["schemas"]["Ask"].update(required=["n"]),
    "Colour no longer has ['blue']": lambda new: new["components"]["schemas"]["Colour"].update(enum=["red"]),
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_the_api_loses_is_named(message: str) -> None:
    new = copy.deepcopy(BASE)
    CHANGES[message](new)
    (found,) = openapi.breaking_changes(BASE, new)
    assert found.endswith(message)
