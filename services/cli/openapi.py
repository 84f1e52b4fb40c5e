"""`silkrec openapi [--check]`: the public API as one document, from the applications themselves.

The recommender and the features service share one public URL, so their documents are one. `/v1` only gains: what a
program relies on today must be in the next document too; `breaking_changes` says what would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from services.features import app as features
from services.recommender import app as recommender
from shared.errors import Conflict
from shared.settings.load import Loaded
from shared.settings.roots import Settings

FILE = Path(__file__).resolve().parents[2] / "openapi.json"
TITLE = "SilkRec"
_METHODS = ("get", "put", "post", "delete", "patch")


def command(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail when the file is not up to date.")
    ] = False,
    file: Annotated[Path, typer.Option(help="Where the document is.")] = FILE,
) -> None:
    """Writes openapi.json from the routes."""
    text = render(merged())
    if check:
        if not file.exists() or file.read_bytes() != text:
            raise Conflict(f"{file} is not what the routes say; run `silkrec openapi` and commit the file")
        typer.echo(f"{file} is up to date")
        return
    file.write_bytes(text)
    typer.echo(f"wrote {file}")


def merged() -> dict[str, Any]:
    """One document. Raises Conflict when two services describe one path or one schema differently."""
    loaded = Loaded(Settings(), {}, None)
    documents = [recommender.build(loaded).openapi(), features.build(loaded).openapi()]
    result: dict[str, Any] = {
        **documents[0],
        "info": {"title": TITLE, "version": documents[0]["info"]["version"]},
        "paths": {},
        "components": {},
    }
    for document in documents:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                _put(result["paths"].setdefault(path, {}), method, operation, f"{method} {path}")
        for kind, parts in document.get("components", {}).items():
            for name, part in parts.items():
                _put(result["components"].setdefault(kind, {}), name, part, f"{kind}/{name}")
    return result


def render(document: Mapping[str, Any]) -> bytes:
    """Sorted, so that the file changes only where the API does."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _put(into: dict[str, Any], name: str, value: Any, where: str) -> None:
    if into.setdefault(name, value) != value:
        raise Conflict(f"two services describe {where} differently; rename one of the models or routes")


def breaking_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a program written for `old` would miss in `new`: routes, parameters, fields; and what it must now send."""
    return list(_lost_operations(old, new)) + list(_changed_schemas(old, new))


def _lost_operations(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for path, operations in old["paths"].items():
        for method in _METHODS:
            if method not in operations:
                continue
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                yield f"{method.upper()} {path} is gone"
                continue
            before = {(one["in"], one["name"]): one for one in operations[method].get("parameters", [])}
            after = {(one["in"], one["name"]): one for one in now.get("parameters", [])}
            for key in before.keys() - after.keys():
                yield f"{method.upper()} {path}: {key[0]} parameter {key[1]} is gone"
            for key, one in after.items():
                if one.get("required") and not before.get(key, {}).get("required"):
                    yield f"{method.upper()} {path}: {key[0]} parameter {key[1]} is now required"
            for status in operations[method]["responses"].keys() - now["responses"].keys():
                yield f"{method.upper()} {path}: answer {status} is gone"


def _changed_schemas(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    schemas = new.get("components", {}).get("schemas", {})
    for name, before in old.get("components", {}).get("schemas", {}).items():
        after = schemas.get(name)
        if after is None:
            yield f"schema {name} is gone"
            continue
        fields, now = before.get("properties", {}), after.get("properties", {})
        for field in fields.keys() - now.keys():
            yield f"{name}.{field} is gone"
        for field in fields.keys() & now.keys():
            if _types(fields[field]) - _types(now[field]):
                yield f"{name}.{field} was {sorted(_types(fields[field]))}, is {sorted(_types(now[field]))}"
        if _is_request(new, name):
            for field in set(after.get("required", ())) - set(before.get("required", ())):
                yield f"{name}.{field} is now required"
        lost = set(before.get("enum", ())) - set(after.get("enum", before.get("enum", ())))
        if lost:
            yield f"{name} no longer has {sorted(map(str, lost))}"


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types or references that a field may have; empty says: any."""
    if "anyOf" in schema:
        return set().union(*(_types(branch) for branch in schema["anyOf"]))
    if "$ref" in schema:
        return {schema["$ref"]}
    kinds = schema.get("type", [])
    return {kinds} if isinstance(kinds, str) else set(kinds)


def _is_request(document: Mapping[str, Any], name: str) -> bool:
    """Is the schema reached from a request body? What an answer promises more is no break."""
    schemas = document["components"]["schemas"]
    todo = [
        operation["requestBody"]
        for operations in document["paths"].values()
        for operation in operations.values()
        if isinstance(operation, dict) and "requestBody" in operation
    ]
    seen: set[str] = set()
    while todo:
        for reference in _references(todo.pop()):
            if reference not in seen:
                seen.add(reference)
                todo.append(schemas.get(reference, {}))
    return name in seen


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference.rpartition("/")[2]
        for child in node.values():
            yield from _references(child)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)
