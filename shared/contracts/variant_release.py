"""The setting `release` of a variant: what it serves in place of the active release.

    experiments.document["variants"][…]["settings"]["release"] = {"model": "m-…", "index": "i-…"}     one at least

The recommender opens the index, inference loads the model; this is all they share of experiments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTING = "release"
MOST = 2
"""Beside the active one, in every process: each costs an index in the recommender's memory, and a model with a latent
cache of its own (`inference.cache`) in the engine's."""
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PARTS = frozenset(("model", "index"))


@dataclass(frozen=True, slots=True)
class VariantRelease:
    """`model` None: the one that the index was built from, or else the active one; `index` None: the active one."""

    model: str | None
    index: str | None

    @classmethod
    def of(cls, setting: Any) -> VariantRelease | None:
        """None for what is no such setting."""
        if not isinstance(setting, Mapping) or not setting or not setting.keys() <= _PARTS:
            return None
        if not all(isinstance(name, str) and _VERSION.fullmatch(name) for name in setting.values()):
            return None
        return cls(setting.get("model"), setting.get("index"))
