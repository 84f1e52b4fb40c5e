"""What a cost model learned, kept in a file over restarts: one a device, precision and architecture."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch

from services.inference.engine.cost_model import CostModel
from services.inference.model.config import ModelConfig


class CostStore:
    """`folder` None: nothing is kept. A file that cannot be read is as good as none: costs are learned anew."""

    def __init__(self, folder: Path | None, *, device: str, precision: str) -> None:
        self._folder = folder
        self._place = f"{_device_name(device)} {precision}"

    def restore(self, config: ModelConfig, cost: CostModel) -> bool:
        """True when there was something to restore."""
        if self._folder is None:
            return False
        try:
            snapshot = json.loads(self._path(self._folder, config).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(snapshot, dict) and cost.restore(snapshot)

    def save(self, config: ModelConfig, snapshot: dict[str, object]) -> None:
        """Whole or not at all. Raises OSError."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(self._folder, config)
        beside = path.with_suffix(f".{os.getpid()}")
        try:
            beside.write_text(json.dumps(snapshot), "utf-8")
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def _path(self, folder: Path, config: ModelConfig) -> Path:
        shape = json.dumps([self._place, {**config.to_dict(), "vocabulary": 0}], sort_keys=True)
        return folder / f"{hashlib.sha256(shape.encode()).hexdigest()[:24]}.json"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu {os.cpu_count()}"
