"""Holds the inference settings against the machine. What cannot work here is refused at the start, with the figure that
shows it, rather than found out under load."""

from __future__ import annotations

from typing import Protocol

from shared.errors import ConfigurationError
from shared.settings.roots import InferenceSettings, LatentCacheSettings

SLOWEST_SHARE = 0.5
"""Of fp32's speed: a short precision that does less only loses digits. GFLOP/s in fp32, bf16, fp16: our AVX2 cores 30
to 76, 0.3 to 0.5, 0.5; a server's core with AMX 147, 656, 137; an H100 51,000, 781,000, 790,000."""
_MIB = 1 << 20


class Measured(Protocol):
    """`services.inference.engine.capability.Machine`."""

    @property
    def device(self) -> str: ...

    @property
    def device_bytes(self) -> int: ...

    @property
    def host_bytes(self) -> int: ...

    def gflops(self, precision: str) -> float: ...


def check(settings: InferenceSettings, machine: Measured) -> None:
    """Raises ConfigurationError. Takes 0.1 to 0.4 s for a precision other than fp32, and no time else."""
    _check_precision(settings.precision, machine)
    _check_cache(settings.cache, machine)


def _check_precision(precision: str, machine: Measured) -> None:
    if precision == "fp32":
        return
    full, short = machine.gflops("fp32"), machine.gflops(precision)
    if short < SLOWEST_SHARE * full:
        raise ConfigurationError(
            f"inference.precision: {precision} does {short:.1f} GFLOP/s on {machine.device} here and fp32 does "
            f"{full:.1f}; use fp32, or a device with {precision} instructions"
        )


def _check_cache(cache: LatentCacheSettings, machine: Measured) -> None:
    """Only a GPU has a tier on the host below it."""
    if not cache.enabled:
        return
    asked, there = cache.device_mb, machine.device_bytes // _MIB
    if asked > there:
        raise ConfigurationError(
            f"inference.cache.device_mb: {asked:,} MiB are asked for and {machine.device} has {there:,} MiB in all; "
            "lower it, or leave it 0 to let the engine choose"
        )
    on_host = max(cache.host_mb, 0) if machine.device.startswith("cuda") else 0
    there = machine.host_bytes // _MIB
    if on_host > there:
        raise ConfigurationError(
            f"inference.cache.host_mb: {on_host:,} MiB are asked for and this machine has {there:,} MiB in all; "
            "lower it, 0 to let the engine choose, -1 for none"
        )
