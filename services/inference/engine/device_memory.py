"""How much of what torch's allocator took from the device is in use, and giving back the rest when nothing is to do.

Blocks that the allocator holds without using them are what fragmentation costs: another process, or a larger batch,
could have had them. Seen on an H100 (d 1,024, bf16): 5.7 GB held for 2.8 in use after the warm-up; a trim gave 2.0 back
and left 1.34, which is the private pools of CUDA graphs.

torch.cuda.memory_stats: https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory_stats.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

TRIM_ABOVE = 1.2
"""Reserved over active bytes."""
TRIM_LEAST_BYTES = 64 << 20
"""Less is not worth the 5 ms in which the next large batch asks the driver again."""
TRIM_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """`reserved_bytes` from the driver, `active_bytes` of them in tensors; both 0 without a GPU."""

    reserved_bytes: int = 0
    active_bytes: int = 0

    @property
    def fragmentation(self) -> float:
        """Reserved over active, 1 at best; 0 where nothing is reserved."""
        return self.reserved_bytes / max(1, self.active_bytes) if self.reserved_bytes else 0.0


def read(device: str) -> DeviceMemory:
    """From any thread."""
    if not device.startswith("cuda") or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return DeviceMemory()
    stats = torch.cuda.memory_stats(device)
    return DeviceMemory(int(stats.get("reserved_bytes.all.current", 0)), int(stats.get("active_bytes.all.current", 0)))


@dataclass(slots=True)
class Trimmer:
    """`idle` is called on the device thread when nothing is to do. What a trim could not give back (a graph's private
    pool, a half-used segment) is not asked for again until more is held than was left then."""

    read: Callable[[], DeviceMemory]
    release: Callable[[], None] = torch.cuda.empty_cache
    clock: Callable[[], float] = time.monotonic
    _not_before: float = field(default=0.0, init=False)
    _stuck_bytes: int = field(default=0, init=False)

    def idle(self) -> int:
        """Bytes given back."""
        now = self.clock()
        if now < self._not_before:
            return 0
        memory = self.read()
        unused = memory.reserved_bytes - memory.active_bytes
        if memory.fragmentation <= TRIM_ABOVE or unused < self._stuck_bytes + TRIM_LEAST_BYTES:
            return 0
        self.release()
        after = self.read()
        self._stuck_bytes = after.reserved_bytes - after.active_bytes
        self._not_before = now + TRIM_EVERY_S
        return memory.reserved_bytes - after.reserved_bytes
