"""Where latents lie: a store on the device and, beside a GPU, pinned memory on the host below it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from services.inference.model.serve.forward import ServingRanker
from services.inference.model.serve.step import LatentStore
from shared.errors import ConfigurationError

_GPU_SHARE = 0.45
"""Of the memory that is free once the weights are there: a second model must find room beside the first for a swap."""
_CPU_SHARE = 0.05
_CPU_MOST = 1 << 30
_HOST_SHARE = 0.1
_HOST_MOST = 8 << 30
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Bytes 0: chosen when a model is loaded: 45 % of a GPU's free memory, beside it 10 % of the host's (8 GiB at
    most); without a GPU 5 % of all memory (1 GiB at most) and no host tier. `host_bytes` below 0: no host tier.
    `enabled` False: pages serve the running pass only."""

    enabled: bool = True
    device_bytes: int = 0
    host_bytes: int = 0
    page_rows: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class HostStore:
    """`latent` [pages, layers, page_rows, width], `state` [pages, d]; both pinned. A page is one piece here, so that
    it travels in one copy."""

    latent: Tensor
    state: Tensor

    @property
    def pages(self) -> int:
        return self.latent.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Tiers:
    """`Mover` of the latent cache. Copies are queued behind the pass that runs, and the next pass behind them: nobody
    waits on the host."""

    device: LatentStore
    host: HostStore | None

    @classmethod
    def of(cls, ranker: ServingRanker, options: CacheOptions, *, least_rows: int) -> Tiers:
        """`least_rows`: what one request may need. Raises ConfigurationError when the device has no room for that."""
        page_bytes = ranker.new_store(0, options.page_rows).page_bytes
        is_gpu = ranker.device.type == "cuda"
        available = options.device_bytes or _device_bytes(ranker.device)
        least = -(-least_rows // options.page_rows)
        pages = int(available // page_bytes) - 1
        if pages < least:
            raise ConfigurationError(
                f"inference.cache.device_mb: a history of {least_rows} rows needs "
                f"{(least + 1) * page_bytes / _MIB:.1f} MiB of latents, {available / _MIB:.1f} MiB are there; "
                "give more, or lower inference.max_sequence_length"
            )
        device = ranker.new_store(pages, options.page_rows)
        wanted = options.host_bytes or min(_HOST_MOST, int(_memory_bytes() * _HOST_SHARE))
        if not is_gpu or not options.enabled or wanted < page_bytes:
            return cls(device, None)
        shape = (int(wanted // page_bytes), *device.latent[:, 0].shape)
        return cls(
            device,
            HostStore(
                torch.empty(shape, dtype=device.latent.dtype, pin_memory=True),
                torch.empty((shape[0], device.state.shape[1]), dtype=torch.float32, pin_memory=True),
            ),
        )

    def demote(self, device: list[int], host: list[int]) -> None:
        store = self._host()
        source = self._index(device)
        latents = self.device.latent.index_select(1, source).transpose(0, 1).contiguous()
        states = self.device.state.index_select(0, source)
        for place, page in enumerate(host):
            store.latent[page].copy_(latents[place], non_blocking=True)
            store.state[page].copy_(states[place], non_blocking=True)

    def promote(self, host: list[int], device: list[int]) -> None:
        store = self._host()
        target = self._index(device)
        latents = self.device.latent.new_empty((len(host), *store.latent.shape[1:]))
        states = self.device.state.new_empty((len(host), store.state.shape[1]))
        for place, page in enumerate(host):
            latents[place].copy_(store.latent[page], non_blocking=True)
            states[place].copy_(store.state[page], non_blocking=True)
        self.device.latent.index_copy_(1, target, latents.transpose(0, 1))
        self.device.state.index_copy_(0, target, states)

    def _host(self) -> HostStore:
        if self.host is None:
            raise ConfigurationError("inference.cache.host_mb: this engine has no host tier")
        return self.host

    def _index(self, pages: list[int]) -> Tensor:
        device = self.device.latent.device
        index = torch.tensor(pages, pin_memory=device.type == "cuda")
        return index.to(device, non_blocking=True)


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE)
    return min(_CPU_MOST, int(_memory_bytes() * _CPU_SHARE))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
