"""What this machine can do, measured: the figures with which a setting that cannot work here is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SIDE_CPU, _SIDE_GPU = 256, 4096
"""Of the square matrices. A GPU's 256 would measure how fast work is launched."""
_TRIALS = 3
_TRIAL_S = 0.01
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Machine:
    """`device` as torch names it: cpu, cuda, cuda:1."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._device = torch.device(device)

    def gflops(self, precision: str) -> float:
        """Of a matrix product in `precision`, the best of three trials of 10 ms: a busy neighbour only ever slows one
        down. 0 where torch has no such product. One thread on a CPU, as requests beside each other have it."""
        try:
            return max(self._trial(_DTYPE[precision]) for _ in range(_TRIALS))
        except RuntimeError:
            return 0.0

    @property
    def device_bytes(self) -> int:
        """All memory of the device, used or not."""
        if self._device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._device)[1])
        return self.host_bytes

    @property
    def host_bytes(self) -> int:
        """What this process may have: a container's limit, where that is less than the memory that is built in."""
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        limits += [limit for path in _CGROUP_LIMITS if (limit := _limit(path)) is not None]
        return min(limits)

    def _trial(self, dtype: torch.dtype) -> float:
        is_gpu = self._device.type == "cuda"
        side = _SIDE_GPU if is_gpu else _SIDE_CPU
        left = torch.ones((side, side), dtype=dtype, device=self._device)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            torch.mm(left, left)
            self._finish()
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < _TRIAL_S:
                torch.mm(left, left)
                self._finish()
                done += 1
            seconds = time.perf_counter() - begin
        finally:
            torch.set_num_threads(threads)
        return done * 2 * side**3 / seconds * 1e-9

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _limit(path: Path) -> int | None:
    """None where there is no such file and no limit ('max')."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
