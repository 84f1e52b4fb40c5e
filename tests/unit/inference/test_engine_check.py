"""Settings that cannot work on a machine are refused with the figure that shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from services.inference.engine.capability import Machine
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine_check import check
from services.inference.wiring import engine_options
from shared.errors import ConfigurationError
from shared.settings.load import load_settings
from shared.settings.roots import InferenceSettings

GIB = 1 << 30


@dataclass(frozen=True)
class Known:
    """A machine whose figures are known. Speeds in GFLOP/s."""

    device: str = "cpu"
    device_bytes: int = 24 * GIB
    host_bytes: int = 24 * GIB
    speeds: dict[str, float] = field(default_factory=lambda: {"fp32": 76.0, "bf16": 0.3, "fp16": 0.5})

    def gflops(self, precision: str) -> float:
        return self.speeds[precision]


GPU = Known("cuda", 80 * GIB, 24 * GIB, {"fp32": 50_000.0, "bf16": 600_000.0, "fp16": 600_000.0})


def settings_of(**inference: Any) -> InferenceSettings:
    overrides = {f"inference.{name.replace('__', '.')}": value for name, value in inference.items()}
    return load_settings(env={}, overrides=overrides).settings.inference


@pytest.mark.parametrize(
    ("precision", "told"), [("bf16", "bf16 does 0.3 GFLOP/s on cpu"), ("fp16", "fp16 does 0.5 GFLOP/s on cpu")]
)
def test_a_precision_that_this_machine_emulates_is_refused_with_both_speeds(precision: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"inference\.precision: {told} here and fp32 does 76\.0"):
        check(settings_of(precision=precision), Known())


@pytest.mark.parametrize("machine", [GPU, Known(speeds={"fp32": 76.0, "bf16": 60.0}), Known(speeds={})])
def test_fp32_always_works_and_others_where_they_are_not_slower(machine: Known) -> None:
    check(settings_of(precision="fp32"), machine)
    if machine.speeds:
        check(settings_of(precision="bf16"), machine)


def test_a_cache_larger_than_the_memory_is_refused_with_both_sizes() -> None:
    with pytest.raises(ConfigurationError, match=r"cache\.device_mb: 30,000 MiB .* cpu has 24,576 MiB"):
        check(settings_of(cache__device_mb=30_000), Known())
    with pytest.raises(ConfigurationError, match=r"cache\.host_mb: 30,000 MiB .* has 24,576 MiB"):
        check(settings_of(cache__device_mb=30_000, cache__host_mb=30_000), GPU)


def test_a_cache_that_fits_or_is_off_or_has_no_such_tier_is_taken() -> None:
    check(settings_of(cache__device_mb=30_000, cache__host_mb=20_000), GPU)
    check(settings_of(cache__enabled=False, cache__device_mb=30_000), Known())
    check(settings_of(cache__host_mb=30_000), Known())


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"inference\.device: torch cannot use 'abacus'"):
        Engine(EngineOptions(device="abacus"))


def test_this_machine_knows_its_speed_and_its_memory() -> None:
    machine = Machine("cpu")
    assert machine.gflops("fp32") > 0.1
    assert machine.gflops("bf16") > 0.0
    assert 1 << 28 < machine.host_bytes == machine.device_bytes


def test_preferred_sizes_above_the_largest_are_refused_when_somebody_wrote_them_down() -> None:
    with pytest.raises(ConfigurationError, match="preferred_batch_size 64 is above max_batch_size 48"):
        settings_of(dynamic_batching__max_batch_size=48, dynamic_batching__preferred_batch_size=[32, 64])
    with pytest.raises(ConfigurationError, match="preferred_batch_size"):
        settings_of(dynamic_batching__preferred_batch_size=[0])
    policy = engine_options(settings_of(dynamic_batching__max_batch_size=48)).policy
    assert (policy.max_batch_size, policy.preferred_batch_size) == (48, (32,))


def test_with_dynamic_batching_the_batch_size_does_not_count() -> None:
    policy = engine_options(settings_of(batch_size=7)).policy
    assert (policy.enabled, policy.max_batch_size, policy.preferred_batch_size) == (True, 128, (32, 64))
    assert policy.max_queue_delay_s == pytest.approx(0.001)


def test_without_dynamic_batching_batches_hold_what_waits_up_to_the_batch_size_and_wait_for_nobody() -> None:
    policy = engine_options(settings_of(batch_size=7, dynamic_batching__enabled=False)).policy
    assert (policy.enabled, policy.max_batch_size, policy.max_queue_delay_s) == (True, 7, 0.0)
    assert not engine_options(settings_of(dynamic_batching__enabled=False)).policy.enabled


def test_the_defaults_are_those_of_the_documentation() -> None:
    settings = settings_of()
    assert (settings.batch_size, settings.max_sequence_length, settings.precision) == (1, 2048, "fp32")
    options = engine_options(settings)
    assert (options.max_rows, options.cache.enabled, options.cache.page_rows) == (2048, True, 64)
