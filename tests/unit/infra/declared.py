"""Which metrics the code declares, read from its source: name to labels, as Prometheus will see them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
KINDS = ("counter", "gauge", "histogram", "summary")
# Metrics of `shared/` are every service's.
SERVICES = ("recommender", "features", "inference", "alerts", "jobs", "jobs_worker")


@functools.cache
def declared() -> dict[str, set[str]]:
    """With the endings that a histogram or a summary has."""
    found: dict[str, set[str]] = {}
    for top in ("shared", "services"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / top).parts
            # Which of them counts what, the suite that runs says (tests/e2e/test_boards.py).
            owners = ("jobs", "jobs_worker") if parts[:2] == ("recommender", "jobs") else (parts[0],)
            services = SERVICES if top == "shared" else owners
            for kind, name, labels in _calls(ast.parse(path.read_text("utf-8"))):
                for service in services:
                    for ending, more in _endings(kind):
                        found[f"silkrec_{service}_{name}{ending}"] = labels | more
    return found


def _endings(kind: str) -> list[tuple[str, set[str]]]:
    if kind == "histogram":
        return [("_bucket", {"le"}), ("_sum", set()), ("_count", set())]
    if kind == "summary":
        return [("_sum", set()), ("_count", set())]
    return [("", set())]


def _calls(tree: ast.AST) -> Iterator[tuple[str, str, set[str]]]:
    """`metrics.counter("name", "help", ["label"])`."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KINDS):
            continue
        if len(node.args) < 2 or not isinstance(node.args[0], ast.Constant) or not isinstance(node.args[0].value, str):
            continue
        given = node.args[2] if len(node.args) > 2 else None
        given = next((keyword.value for keyword in node.keywords if keyword.arg == "labels"), given)
        labels = set(ast.literal_eval(given)) if given is not None else set()
        yield node.func.attr, node.args[0].value, labels
