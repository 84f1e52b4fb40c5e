"""Utilisation and memory of the engine's GPU, as NVML tells them: of the whole card, whoever uses it.

NVML reference: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pynvml

from shared.observability.logging import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """`utilisation` [0, 1]: share of NVML's last sample, between 1/6 s and 1 s, in which a kernel ran."""

    utilisation: float = 0.0
    used_bytes: int = 0
    total_bytes: int = 0


class Nvml(Protocol):
    """The part of `pynvml` that is asked."""

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802


class Gpu:
    """`uuid` as NVML has it: its numbers know nothing of CUDA_VISIBLE_DEVICES. Empty: there is none, and all is 0."""

    def __init__(self, uuid: str, nvml: Nvml = pynvml) -> None:
        self._nvml = nvml
        self._handle: Any = None
        if not uuid:
            return
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            _log.warning("NVML does not know the GPU; its utilisation is not exported", uuid=uuid, detail=str(error))

    def use(self) -> GpuUse:
        """0.1 to 2 ms. A driver that stops answering is not asked again."""
        if self._handle is None:
            return GpuUse()
        try:
            rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except pynvml.NVMLError as error:
            _log.error("NVML stopped answering", detail=str(error))
            self._handle = None
            return GpuUse()
        return GpuUse(rates.gpu / 100, int(memory.used), int(memory.total))
