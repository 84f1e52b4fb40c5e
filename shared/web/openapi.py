"""The OpenAPI document: problem responses and key schemes stand on every operation without each route saying so."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from shared.web import problem

_REF = {"$ref": "#/components/schemas/Problem"}
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. `code` is stable; programs read it and never the texts.",
    "required": ["type", "title", "status", "detail", "code", "request_id", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": ["string", "null"]},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "message", "code"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer (RFC 6901)"},
                    "message": {"type": "string"},
                    "code": {"type": "string"},
                    "position": {"type": "integer", "description": "character offset in a filter or a body"},
                    "in": {"enum": ["path", "query", "header", "cookie"], "description": "absent: the body"},
                },
            },
        },
    },
}
_RESPONSES = {
    "4XX": {"description": "The request must change", "content": {problem.MEDIA_TYPE: {"schema": _REF}}},
    "5XX": {
        "description": "Ours or a dependency's fault; see Retry-After",
        "content": {problem.MEDIA_TYPE: {"schema": _REF}},
    },
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key (`silkrec keys create`)"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def package_version() -> str:
    return version("silkrec")


def document(app: FastAPI) -> dict[str, Any]:
    """Built once, at the first call."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = schema.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = PROBLEM_SCHEMA
        components["securitySchemes"] = _SECURITY
        schema["security"] = [{"bearer": []}, {"api_key": []}, {}]
        for path, operations in schema.get("paths", {}).items():
            for method, operation in operations.items():
                if isinstance(operation, dict) and method in ("get", "put", "post", "delete", "patch"):
                    responses = operation.setdefault("responses", {})
                    # FastAPI's own description of a 422 is not what we answer.
                    responses.pop("422", None)
                    for status, response in _RESPONSES.items():
                        responses.setdefault(status, response)
                    if path == "/ready":
                        responses["503"] = {"description": "Not ready", "content": {"application/json": {"schema": {}}}}
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
