"""When an idle engine gives memory back, and what NVML's answers become. No GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

from services.inference.engine import device_memory
from services.inference.engine.device_memory import DeviceMemory, Trimmer
from services.inference.gpu import Gpu, GpuUse

MIB = 1 << 20


class Allocator:
    """`stuck` bytes cannot be given back."""

    def __init__(self, reserved: int, active: int, stuck: int = 0) -> None:
        self.reserved, self.active, self.stuck = reserved * MIB, active * MIB, stuck * MIB
        self.trims = 0

    def read(self) -> DeviceMemory:
        return DeviceMemory(self.reserved, self.active)

    def release(self) -> None:
        self.trims += 1
        self.reserved = min(self.reserved, self.active + self.stuck)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def trimmer(allocator: Allocator) -> tuple[Trimmer, Clock]:
    clock = Clock()
    return Trimmer(allocator.read, allocator.release, clock), clock


def test_an_idle_engine_gives_back_what_nobody_uses() -> None:
    allocator = Allocator(reserved=1000, active=500)
    idle, _ = trimmer(allocator)
    assert allocator.read().fragmentation == 2.0
    assert idle.idle() == 500 * MIB
    assert allocator.read().fragmentation == 1.0


def test_little_or_tight_memory_is_left_alone() -> None:
    for allocator in (Allocator(1190, 1000), Allocator(90, 50), Allocator(0, 0)):
        assert trimmer(allocator)[0].idle() == 0
        assert allocator.trims == 0


def test_what_cannot_be_given_back_is_not_asked_for_again() -> None:
    allocator = Allocator(reserved=1000, active=500, stuck=200)
    idle, clock = trimmer(allocator)
    assert idle.idle() == 300 * MIB
    clock.now_s = 1000.0
    assert idle.idle() == 0
    assert allocator.trims == 1
    allocator.reserved = 900 * MIB
    assert idle.idle() == 200 * MIB


def test_trims_are_half_a_minute_apart() -> None:
    allocator = Allocator(reserved=1000, active=500)
    idle, clock = trimmer(allocator)
    idle.idle()
    allocator.reserved = 1000 * MIB
    clock.now_s = 29.0
    assert idle.idle() == 0
    clock.now_s = 30.0
    assert idle.idle() == 500 * MIB


def test_without_a_gpu_all_is_zero() -> None:
    assert device_memory.read("cpu").fragmentation == 0.0
    assert Gpu("").use() == GpuUse()


class Driver:
    """NVML with one card."""

    def __init__(self) -> None:
        self.answers = True

    def nvmlInit(self) -> None:
        return

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        if not self.answers:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(gpu=93, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=80 << 30, used=30 << 30, free=50 << 30)


def test_nvml_tells_utilisation_and_memory_of_the_engines_card() -> None:
    driver = Driver()
    gpu = Gpu("GPU-1", driver)
    assert gpu.use() == GpuUse(0.93, 30 << 30, 80 << 30)
    driver.answers = False
    assert gpu.use() == GpuUse()


def test_a_card_that_nvml_does_not_know_is_not_exported() -> None:
    assert Gpu("GPU-2", Driver()).use() == GpuUse()
