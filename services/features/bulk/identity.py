"""Which import this is: the same file with the same meaning goes on where it stopped, anything else starts anew.

The identity is a hash of the file's bytes and of whatever changes what its rows mean: kind, columns, constants, units,
and the declarations of `silkrec.yaml` that rows are checked against. Not its name or place: a moved file goes on. All
bytes are read (about 1 s a GB, where importing them takes minutes), because an edit inside a large file must not be
taken for the file that was half imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`lines` counts line ends: what a text file's rows are at most."""

    digest: str
    size: int
    lines: int


def fingerprint(path: Path) -> Fingerprint:
    digest, size, lines = hashlib.blake2b(digest_size=16), 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            lines += block.count(b"\n")
    return Fingerprint(digest.hexdigest(), size, lines)


def import_id(content: Fingerprint, meaning: Mapping[str, Any]) -> str:
    told = orjson.dumps({"content": content.digest, **meaning}, option=orjson.OPT_SORT_KEYS)
    return f"imp_{hashlib.blake2b(told, digest_size=16).hexdigest()}"
