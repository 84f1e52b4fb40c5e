"""One value of a YAML file changed in its text, so that comments and order stay. PyYAML writes none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from shared.errors import ConfigurationError

INDENT = "  "


def set_value(text: str, path: Sequence[str], value: Any) -> str:
    """The text with `value` (a number, or a list of them) at `path`. Raises ConfigurationError when the file is written
    in a way that this cannot keep: then it is to be changed by hand."""
    wanted = _with(yaml.safe_load(text) or {}, path, value)
    changed = _edited(text, path, json.dumps(value))
    try:
        same = yaml.safe_load(changed) == wanted
    except yaml.YAMLError:
        same = False
    if not same:
        raise ConfigurationError(
            f"{'.'.join(path)} cannot be set without rewriting the file; set it to {value} by hand"
        )
    return changed


def _with(tree: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    inner = tree.get(head)
    return {**tree, head: _with(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _edited(text: str, path: Sequence[str], value: str) -> str:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return text + ("" if not text or text.endswith("\n") else "\n") + _block(path, value, "")
    depth = 0
    while isinstance(node, yaml.MappingNode):
        inner = next((right for left, right in node.value if left.value == path[depth]), None)
        if inner is None:
            return _added(text, node, path[depth:], value)
        depth += 1
        if depth == len(path):
            return text[: inner.start_mark.index] + value + text[_end(text, inner) :]
        node = inner
    # `inference:` with nothing behind it: the mapping begins on the next line.
    line_end = _line_end(text, node.start_mark.index)
    return text[:line_end] + "\n" + _block(path[depth:], value, INDENT * depth).rstrip("\n") + text[line_end:]


def _added(text: str, node: yaml.MappingNode, path: Sequence[str], value: str) -> str:
    if node.flow_style:
        end = node.end_mark.index - 1
        inner = value
        for name in reversed(path[1:]):
            inner = f"{{{name}: {inner}}}"
        comma = ", " if node.value else ""
        return f"{text[:end].rstrip()}{comma}{path[0]}: {inner}{text[end:]}"
    last = node.value[-1][1]
    end = _line_end(text, max(_end(text, last) - 1, node.value[-1][0].end_mark.index))
    indent = " " * node.start_mark.column
    return text[:end] + "\n" + _block(path, value, indent).rstrip("\n") + text[end:]


def _block(path: Sequence[str], value: str, indent: str) -> str:
    lines = [f"{indent}{INDENT * depth}{name}:" for depth, name in enumerate(path)]
    return "\n".join(lines) + f" {value}\n"


def _end(text: str, node: yaml.Node) -> int:
    """A block's end mark is where the next token begins, behind blank lines and comments."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(text, last[1] if isinstance(last, tuple) else last)


def _line_end(text: str, start: int) -> int:
    found = text.find("\n", start)
    return len(text) if found < 0 else found
