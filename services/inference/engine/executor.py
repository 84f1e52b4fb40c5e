"""One thread owns the device: schedule, launch, land. On a GPU the next batch is planned while one runs.

Nothing else runs a model in this process; warm-up and other device work come in through `call`, between batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch

from services.inference.engine.counters import EngineCounters
from services.inference.engine.latent_cache import CacheFull
from services.inference.engine.request import InferAnswer, InferRequest, Part
from services.inference.engine.runner import Flight, ServingModel
from services.inference.engine.scheduler import Placed, Plan, Refused, Scheduler, Ticket
from shared.errors import DeadlineExceeded, InferenceUnavailable, SilkrecError

T = TypeVar("T")
Result = InferAnswer | SilkrecError
log = logging.getLogger(__name__)
_IDLE_S = 0.5
"""An idle thread wakes this often, and then looks after the caches."""
_LEAD = 2.0
"""A batch is planned this many host times before the device is free: later it would stand idle, earlier the batch
would miss requests that still come."""
_HOST_SMOOTHING = 0.1
_POLL_S = 0.0005
"""How often a running GPU is asked whether it is done sooner than predicted. Without that a prediction that is too long
fulfils itself: seen as 668 ms for batches of 50 ms."""
_RECOVERY = 500
"""Batches without a fault, after which a lowered batch size is doubled again."""
_TOO_LARGE = (torch.OutOfMemoryError, CacheFull)


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """What became of a ticket."""

    ticket: Ticket
    result: Result


@dataclass(frozen=True, slots=True, eq=False)
class _Airborne:
    """A launched plan. `begin`: when its launch began; `expected_end` on the engine's clock."""

    plan: Plan
    model: ServingModel
    parts: list[Part]
    flight: Flight
    begin: float
    expected_end: float


class Executor:
    """`deliver` is called on the device thread with everything that a round finished; it must not block or raise.
    `idle` is called there when nothing has come for half a second."""

    def __init__(
        self,
        scheduler: Scheduler,
        counters: EngineCounters,
        deliver: Callable[[Sequence[Done]], None],
        *,
        idle: Callable[[], None] = lambda: None,
        threads: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = counters
        self.failure: BaseException | None = None
        self._scheduler = scheduler
        self._policy = scheduler.policy
        self._deliver = deliver
        self._idle = idle
        self._threads = threads
        self._clock = clock
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._airborne: _Airborne | None = None
        self._landed_at = 0.0
        self._host_s = 0.0
        self._clean = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    @property
    def accepts(self) -> bool:
        return self.alive and not self._stopping

    @property
    def queued(self) -> int:
        return len(self._scheduler)

    def is_full(self, seconds: float) -> bool:
        """See `Scheduler.is_full`; counted as a request that was turned away."""
        if not self._scheduler.is_full(self._clock(), seconds):
            return False
        self.counters.outcomes["overloaded"] += 1
        return True

    @property
    def max_batch_size(self) -> int:
        """Requests; lower than configured after the device's memory did not hold a batch."""
        return self._scheduler.policy.max_batch_size

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """What still waits is answered with InferenceUnavailable."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(self, ticket: Ticket) -> None:
        """Raises Overloaded, and InferenceUnavailable when the thread is not there to answer."""
        with self._changed:
            if not self.accepts:
                raise InferenceUnavailable("the engine does not run; its process must be started again")
            try:
                self._scheduler.submit(ticket)
            except SilkrecError:
                self.counters.outcomes["overloaded"] += 1
                raise
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """The caller went away: if it still waits, it never reaches the device."""
        with self._changed:
            if self._scheduler.cancel(ticket):
                self.counters.outcomes["cancelled"] += 1

    def miss(self, ticket: Ticket) -> None:
        """Its deadline passed before it ran; a batch that has it runs on, for the others in it."""
        with self._changed:
            self._scheduler.cancel(ticket)
            self.counters.outcomes["deadline"] += 1

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` on the device thread between two batches."""
        future: Future[T] = Future()
        with self._changed:
            if not self.accepts:
                future.set_exception(InferenceUnavailable("the engine does not run"))
                return future
            self._calls.append((future, work))
            self._changed.notify()
        return future

    def _main(self) -> None:
        try:
            if self._threads:
                torch.set_num_threads(self._threads)  # OpenMP keeps this a thread, so it is set in the one that runs
            while self._round():
                pass
        except BaseException as error:
            self.failure = error
            log.critical("the engine's thread died", exc_info=error)
        finally:
            self._abandon()

    def _round(self) -> bool:
        with self._changed:
            now = self._clock()
            if self._is_early(now):
                return True
            airborne = self._airborne
            plan = self._scheduler.next(now, None if airborne is None else airborne.expected_end)
            work = self._calls.popleft() if self._calls else None
            nothing = not plan.batch and not plan.refused and work is None
            if nothing and airborne is None:
                return self._rest(plan)
        self._refuse(plan.refused)
        launched = self._launch(plan) if plan.batch else None
        if airborne is not None:
            self._land(airborne)
        self._airborne = launched
        if launched is not None and launched.flight.copied is None:  # it ran on the host
            self._airborne = None
            self._land(launched)
        if work is not None:
            _settle(*work)
        return not self._stopping or self._airborne is not None

    def _is_early(self, now: float) -> bool:
        """True after a wait, while the device is still busy for longer than planning takes."""
        airborne = self._airborne
        if airborne is None or self._calls or self._stopping or self.queued >= self.max_batch_size:
            return False
        lead_s = airborne.expected_end - now - _LEAD * self._host_s
        if lead_s <= 0.0 or airborne.flight.is_done:
            return False
        self._changed.wait(min(lead_s, _POLL_S))
        return True

    def _rest(self, plan: Plan) -> bool:
        """Under the lock."""
        if self._stopping:
            return False
        wait_s = _IDLE_S if plan.wake_at is None else max(0.0, plan.wake_at - self._clock())
        if not self._changed.wait(wait_s) and plan.wake_at is None:
            self._changed.release()
            try:
                self._idle()
            finally:
                self._changed.acquire()
        return True

    def _refuse(self, refused: Sequence[Refused]) -> None:
        if refused:
            with self._changed:
                self.counters.outcomes["deadline"] += len(refused)
            self._deliver([Done(item.ticket, _unrun(item)) for item in refused])

    def _launch(self, plan: Plan) -> _Airborne | None:
        """None: the batch failed, and was finished in another way."""
        model = cast("ServingModel", plan.batch[0].ticket.lane)
        parts = [Part(cast("InferRequest", placed.ticket.payload), placed.candidates) for placed in plan.batch]
        begin = self._clock()
        launched = _tried(lambda: model.launch(parts))
        if isinstance(launched, Exception):
            self._recover(plan, model, parts, launched)
            return None
        flight = launched
        self._host_s += _HOST_SMOOTHING * (self._clock() - begin - self._host_s)
        starts = max(begin, begin if self._airborne is None else self._airborne.expected_end)
        return _Airborne(plan, model, parts, flight, begin, starts + model.cost.mean(plan.load))

    def _land(self, airborne: _Airborne) -> None:
        plan, model = airborne.plan, airborne.model
        results = _tried(lambda: model.land(airborne.flight))
        if isinstance(results, Exception):
            model.cache.reset()  # what a failed pass wrote may be read by the next one
            self._recover(plan, model, airborne.parts, results)
            return
        now = self._clock()
        begin = max(airborne.begin, self._landed_at)  # behind another batch it began when that one ended
        seconds, self._landed_at = now - begin, now
        self._deliver([Done(placed.ticket, result) for placed, result in zip(plan.batch, results, strict=True)])
        with self._changed:
            expected, bound = model.cost.mean(plan.load), model.cost.predict(plan.load)
            if not any(isinstance(result, SilkrecError) for result in results):
                model.cost.observe(plan.load, seconds)
            self._raise_cap()
        self.counters.late_batches += seconds > bound
        self.counters.predicted_ratio.add(seconds / max(expected, 1e-9))
        self._count(plan, results, begin, seconds)

    def _recover(self, plan: Plan, model: ServingModel, parts: list[Part], error: Exception) -> None:
        """A request that breaks a batch does not take its neighbours with it."""
        begin = self._clock()
        self.counters.batches_retried += 1
        log.warning("a batch of %d failed (%s); its requests run in smaller ones", len(parts), error)
        results: list[Result] = self._divided(model, plan.batch, parts, error)
        self._landed_at = self._clock()
        self._deliver([Done(placed.ticket, result) for placed, result in zip(plan.batch, results, strict=True)])
        self._count(plan, results, begin, self._clock() - begin)

    def _divided(
        self, model: ServingModel, batch: Sequence[Placed], parts: list[Part], error: Exception
    ) -> list[Result]:
        """In halves when it was too large, one by one otherwise."""
        if len(parts) == 1:
            return [_explained(error)]
        size = 1
        if isinstance(error, _TOO_LARGE):
            size = -(-len(parts) // 2)
            self.counters.oom_splits += 1
            self._lower_cap(size)
        results: list[Result] = []
        for at in range(0, len(parts), size):
            results += self._attempt(model, batch[at : at + size], parts[at : at + size])
        return results

    def _attempt(self, model: ServingModel, batch: Sequence[Placed], parts: list[Part]) -> list[Result]:
        now = self._clock()
        late = [placed.ticket.deadline <= now for placed in batch]
        if all(late):
            return [_unrun(Refused(placed.ticket, "deadline")) for placed in batch]
        results = _tried(lambda: model.run(parts))
        return self._divided(model, batch, parts, results) if isinstance(results, Exception) else results

    def _lower_cap(self, size: int) -> None:
        if self._device_has_cache():
            torch.cuda.empty_cache()
        with self._changed:
            self._clean = 0
            self._scheduler.policy = replace(
                self._scheduler.policy, max_batch_size=min(size, self._scheduler.policy.max_batch_size)
            )
        log.warning("batches are held to %d requests: lower inference.cache.device_mb or max_batch_size", size)

    def _raise_cap(self) -> None:
        """Under the lock."""
        policy = self._scheduler.policy
        if policy.max_batch_size == self._policy.max_batch_size:
            return
        self._clean += 1
        if self._clean >= _RECOVERY:
            self._clean = 0
            size = min(2 * policy.max_batch_size, self._policy.max_batch_size)
            self._scheduler.policy = replace(policy, max_batch_size=size)

    def _device_has_cache(self) -> bool:
        return bool(torch.cuda.is_available() and torch.cuda.is_initialized())  # type: ignore[no-untyped-call]

    def _count(self, plan: Plan, results: Sequence[Result], begin: float, seconds: float) -> None:
        counters = self.counters
        counters.batch_size.add(len(plan.batch))
        counters.batch_rows.add(plan.load.rows + plan.load.candidates)
        counters.batch_s.add(seconds)
        for placed, result in zip(plan.batch, results, strict=True):
            ticket = placed.ticket
            if ticket.priority == 0:  # a job's waits would scale a cluster out and wake people
                counters.queue_s.add(begin - ticket.arrived)
                counters.slack_s.add(ticket.deadline - begin)
            if isinstance(result, SilkrecError):
                counters.outcomes["error"] += 1
                continue
            counters.outcomes["trimmed" if result.reason else "scored"] += 1
            counters.history_rows += ticket.rows
            counters.candidates_scored += placed.candidates
            counters.candidates_unscored += ticket.candidates - placed.candidates

    def _abandon(self) -> None:
        """Whoever still waits hears it now, not at its deadline."""
        with self._changed:
            self._stopping = True
            waiting, calls = self._scheduler.drain(), list(self._calls)
            if self._airborne is not None:
                waiting += [placed.ticket for placed in self._airborne.plan.batch]
                self._airborne = None
            self._calls.clear()
        gone = InferenceUnavailable("the engine stopped before this request ran")
        self._deliver([Done(ticket, gone) for ticket in waiting])
        for future, _ in calls:
            future.set_exception(gone)


def _tried(work: Callable[[], T]) -> T | Exception:
    """What it returns or raises, the latter logged and without its frames: they hold the tensors of the failed pass,
    and a smaller one needs their memory. A device whose context is gone raises: only a new process helps."""
    try:
        return work()
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if not isinstance(error, SilkrecError | torch.OutOfMemoryError):
            log.exception("a pass failed")
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked for the work
        future.set_exception(error)


def _unrun(refused: Refused) -> Result:
    request = cast("InferRequest", refused.ticket.payload)
    if request.candidate is None:
        return DeadlineExceeded("the history could not be encoded before the deadline")
    return cast("ServingModel", refused.ticket.lane).unscored(request, refused.reason)


def _explained(error: Exception) -> SilkrecError:
    if isinstance(error, SilkrecError):
        return error
    return SilkrecError(f"the model failed on this request ({type(error).__name__})")
