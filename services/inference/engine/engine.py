"""The engine's front: asyncio outside, one device thread inside, models that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from services.inference.engine import device_memory
from services.inference.engine.cost_store import CostStore
from services.inference.engine.counters import EngineCounters
from services.inference.engine.device_memory import DeviceMemory, Trimmer
from services.inference.engine.executor import Done, Executor
from services.inference.engine.memory import keep_freed_memory
from services.inference.engine.model_slot import KEEP_PREVIOUS_S, ModelSlot
from services.inference.engine.request import CacheStats, InferAnswer, InferRequest, ItemContent
from services.inference.engine.runner import ServingModel
from services.inference.engine.scheduler import DEADLINE, BatchPolicy, Scheduler, Ticket
from services.inference.engine.tiers import CacheOptions
from services.inference.engine.warmup import tune_threads, warm
from services.inference.model import checkpoint
from services.inference.model.checkpoint import LoadedModel
from shared.errors import ArtifactError, ConfigurationError, DeadlineExceeded, Overloaded, SilkrecError

log = logging.getLogger(__name__)
_ANSWER_S = 0.001
"""Kept back from a deadline for splitting, serialising and the socket: 0.4 ms at the median, 1 ms at p99 on 2 cores."""
_SNAPSHOT_S = 5.0
_CHECK_S = 30.0
"""Between two looks at an idle cache: one over 42,000 pages takes 3 ms, which a request that comes meanwhile waits."""
_LATE_S = 0.0005
"""How far a batch may overrun that before its requests are answered without it: what is left carries the answer."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`threads` 0: measured with the first model. `device` auto: cuda where there is one. `state_dir`: where learned
    costs are kept over restarts."""

    policy: BatchPolicy = field(default_factory=BatchPolicy)
    device: str = "auto"
    precision: str = "fp32"
    threads: int = 0
    max_rows: int = 2048
    keep_previous_s: float = KEEP_PREVIOUS_S
    cache: CacheOptions = field(default_factory=CacheOptions)
    state_dir: Path | None = None


class Engine:
    """One a process. `infer` from any event loop; `load` from a thread that may wait."""

    def __init__(self, options: EngineOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self.device = _device(options.device)
        self.counters = EngineCounters()
        self.threads = options.threads
        """Torch's intra-op threads; 0 until they were measured."""
        self.slot = ModelSlot(clock, options.keep_previous_s)
        self._clock = clock
        self._checked_at = clock()
        self._trimmer = Trimmer(self.memory, clock=clock)
        self._costs = CostStore(options.state_dir, device=self.device, precision=options.precision)
        self._waiting: dict[Ticket, asyncio.Future[InferAnswer]] = {}
        self._executor = Executor(
            Scheduler(options.policy),
            self.counters,
            self._deliver,
            idle=self._look_after,
            threads=options.threads,
            clock=clock,
        )

    @property
    def alive(self) -> bool:
        return self._executor.alive

    @property
    def failure(self) -> BaseException | None:
        return self._executor.failure

    @property
    def queued(self) -> int:
        return self._executor.queued

    @property
    def max_batch_size(self) -> int:
        """Requests; lower than configured after the device's memory did not hold a batch."""
        return self._executor.max_batch_size

    @property
    def prediction_error(self) -> float:
        """Median relative error of the active model's predicted batch times; 0 before there is one."""
        model = self.slot.active
        return 0.0 if model is None else model.cost.error

    @property
    def device_uuid(self) -> str:
        """As NVML names the GPU, `GPU-…`; empty without one."""
        if not self.device.startswith("cuda"):
            return ""
        return f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"

    def memory(self) -> DeviceMemory:
        return device_memory.read(self.device)

    def cache_stats(self) -> CacheStats:
        caches = [model.cache for model in self.slot.models()]
        return CacheStats(
            users=sum(len(cache) for cache in caches),
            device_pages=sum(cache.pool.total for cache in caches),
            device_pages_free=sum(cache.pool.free for cache in caches),
            host_pages=sum(cache.host.total for cache in caches),
            host_pages_free=sum(cache.host.free for cache in caches),
        )

    def start(self) -> None:
        keep_freed_memory()
        self._executor.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """From now on nothing is accepted; what waits is refused once the batch on the device is done."""
        self._executor.stop(timeout_s)

    def check_room(self, deadline_us: int) -> None:
        """Raises Overloaded for a request that would be turned away, so that a door need not read it first: in an
        overload reading costs more than the model."""
        if self._executor.is_full(deadline_us * 1e-6):
            raise Overloaded("more requests wait than leave this one in time", retry_after_s=0.05)

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Never later than the deadline: a ranking request is then unscored, an encoding one raises DeadlineExceeded.
        Raises Overloaded, InferenceUnavailable, NotFound (version). Cancelling takes the request out of the queue."""
        model = self.slot.resolve(request.model_version)
        now = self._clock()
        request = request.newest(model.max_rows + 1)  # one more tells the planner that older rows fell out
        wanted = request.candidate
        if wanted is not None and len(wanted) == 0:
            return model.unscored(request, "")
        rows, cached = model.rows_of(request)
        ticket = Ticket(
            lane=model,
            deadline=now + request.deadline_us * 1e-6 - _ANSWER_S,
            rows=rows,
            cached=cached,
            candidates=0 if wanted is None else len(wanted),
            arrived=now,
            priority=request.priority,
            trimmable=wanted is not None,
            payload=request,
        )
        if ticket.deadline <= now:
            self._executor.miss(ticket)
            return _unrun(model, request)
        return await self._answered(ticket, now)

    async def _answered(self, ticket: Ticket, now: float) -> InferAnswer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[InferAnswer] = loop.create_future()
        self._waiting[ticket] = future
        # The device may be busy past this deadline, and a running batch cannot be interrupted.
        timer = loop.call_later(ticket.deadline - now + _LATE_S, self._expire, ticket, future)
        try:
            self._executor.submit(ticket)
            return await future
        except asyncio.CancelledError:
            self._executor.cancel(ticket)
            raise
        finally:
            timer.cancel()
            self._waiting.pop(ticket, None)

    def _expire(self, ticket: Ticket, future: asyncio.Future[InferAnswer]) -> None:
        if future.done():
            return
        self._executor.miss(ticket)
        try:
            future.set_result(_unrun(cast("ServingModel", ticket.lane), cast("InferRequest", ticket.payload)))
        except DeadlineExceeded as error:
            future.set_exception(error)

    async def forget(self, user_key: str) -> int:
        """History rows dropped from the caches of all loaded models."""

        def drop() -> int:
            return sum(model.cache.forget(user_key) for model in self.slot.models())

        return await asyncio.wrap_future(self._executor.call(drop))

    async def upsert_items(self, items: Sequence[ItemContent]) -> int:
        """Gives items that the active model does not know their content; how many got it. An item's content is given
        once a model: what it has already stays, and so do the states that were built with it."""

        def give() -> int:
            model = self.slot.active
            return 0 if model is None else sum(model.upsert(item.item_index, item.tokens) for item in items)

        return await asyncio.wrap_future(self._executor.call(give))

    async def check_integrity(self) -> list[str]:
        """What is wrong with the latent caches, in words."""
        return await asyncio.wrap_future(self._executor.call(self._faults))

    def save_costs(self) -> None:
        """Blocks on the disk. Raises OSError."""
        for model in self.slot.models():
            snapshot = self._executor.call(model.cost.snapshot)
            self._costs.save(model.config, snapshot.result(_SNAPSHOT_S))

    def load(self, folder: Path) -> ServingModel:
        """Loads beside, warms, switches. Blocks. Raises ArtifactError, or InferenceUnavailable when the engine stops;
        then nothing has changed."""
        try:
            model = self._prepare(checkpoint.load(folder, self.device))
        except SilkrecError:
            self.counters.models_refused += 1
            raise
        except Exception as error:
            # Whatever a damaged or hostile folder does (a width that no memory holds), the present model serves on.
            self.counters.models_refused += 1
            raise ArtifactError(f"{folder} cannot be loaded ({type(error).__name__}: {error})") from error
        self._install(model)
        return model

    def serve(self, loaded: LoadedModel) -> ServingModel:
        """As `load`, for a model that is in memory already, on this engine's device."""
        model = self._prepare(loaded)
        self._install(model)
        return model

    def _install(self, model: ServingModel) -> None:
        first = self.slot.active is None
        self.slot.install(model)
        self.counters.swaps += 1
        if first:
            gc.collect()  # once: with torch imported a full pass holds the lock for 60 ms
        gc.freeze()

    def restore(self, version: str) -> bool:
        """Switches back to the model before, while it is still here: it is warm, so a roll-back takes no time."""
        restored = self.slot.restore(version)
        self.counters.swaps += restored
        return restored

    def _prepare(self, loaded: LoadedModel) -> ServingModel:
        model = ServingModel(
            loaded,
            device=self.device,
            precision=self.options.precision,
            max_rows=self.options.max_rows,
            cache=self.options.cache,
            clock=self._clock,
        )
        first = self.slot.active is None
        if first and self.options.threads == 0 and self.device == "cpu":
            self.threads = tune_threads(model, self._executor)
        warm(model, self._executor)
        model.cache.counters = self.counters.cache  # not before: what warm-up finds cached says nothing of users
        self._costs.restore(model.config, model.cost)
        return model

    def _faults(self) -> list[str]:
        return [fault for model in self.slot.models() for fault in model.cache.check_integrity()]

    def _look_after(self) -> None:
        """On the device thread, when nothing is to do. A cache that contradicts itself is emptied: a score from another
        user's history is worse than a slow one."""
        if freed := self._trimmer.idle():
            self.counters.memory_trims += 1
            log.info("gave %d MiB of unused device memory back", freed >> 20)
        now = self._clock()
        if now < self._checked_at + _CHECK_S:
            return
        self._checked_at = now
        for model in self.slot.models():
            faults = model.cache.check_integrity()
            if faults:
                self.counters.integrity_faults += len(faults)
                log.error(
                    "the latent cache of %s is inconsistent and was emptied: %s", model.version, "; ".join(faults)
                )
                model.cache.reset()

    def _deliver(self, finished: Sequence[Done]) -> None:
        """From the device thread; one wake-up a loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[InferAnswer], Done]]] = defaultdict(list)
        for done in finished:
            future = self._waiting.get(done.ticket)
            if future is not None:
                loops[future.get_loop()].append((future, done))
        for loop, answers in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: Sequence[tuple[asyncio.Future[InferAnswer], Done]]) -> None:
    for future, done in answers:
        if future.done():
            continue  # cancelled while its batch ran
        if isinstance(done.result, SilkrecError):
            future.set_exception(done.result)
        else:
            future.set_result(done.result)


def _unrun(model: ServingModel, request: InferRequest) -> InferAnswer:
    """Raises DeadlineExceeded: half a vector is no vector."""
    if request.candidate is None:
        raise DeadlineExceeded("the history could not be encoded before the deadline")
    return model.unscored(request, DEADLINE)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"inference.device: torch cannot use {name!r} here ({error})") from None
