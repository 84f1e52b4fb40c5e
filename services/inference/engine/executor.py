"""One thread owns the device: it asks the scheduler, runs the batch, hands the answers over.

Nothing else runs a model in this process; warm-up and other device work come in through `call`, between batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

from services.inference.engine.counters import EngineCounters
from services.inference.engine.request import InferAnswer, InferRequest, Part
from services.inference.engine.runner import ServingModel
from services.inference.engine.scheduler import Placed, Plan, Refused, Scheduler, Ticket
from shared.errors import DeadlineExceeded, InferenceUnavailable, SilkrecError

T = TypeVar("T")
log = logging.getLogger(__name__)
_IDLE_S = 0.5
"""An idle thread wakes this often to say that it lives (`last_seen`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """What became of a ticket."""

    ticket: Ticket
    result: InferAnswer | SilkrecError


class Executor:
    """`deliver` is called on the device thread with everything that a round finished; it must not block or raise."""

    def __init__(
        self,
        scheduler: Scheduler,
        counters: EngineCounters,
        deliver: Callable[[Sequence[Done]], None],
        *,
        threads: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = counters
        self.failure: BaseException | None = None
        self._scheduler = scheduler
        self._deliver = deliver
        self._threads = threads
        self._clock = clock
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
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
            plan = self._scheduler.next(self._clock())
            work = self._calls.popleft() if self._calls else None
            if not plan.batch and not plan.refused and work is None:
                if self._stopping:
                    return False
                wait_s = _IDLE_S if plan.wake_at is None else max(0.0, plan.wake_at - self._clock())
                self._changed.wait(wait_s)
                return True
        self._refuse(plan.refused)
        if plan.batch:
            self._run(plan)
        if work is not None:
            _settle(*work)
        return not self._stopping

    def _refuse(self, refused: Sequence[Refused]) -> None:
        if refused:
            with self._changed:
                self.counters.outcomes["deadline"] += len(refused)
            self._deliver([Done(item.ticket, _unrun(item)) for item in refused])

    def _run(self, plan: Plan) -> None:
        model = cast("ServingModel", plan.batch[0].ticket.lane)
        parts = [Part(cast("InferRequest", placed.ticket.payload), placed.candidates) for placed in plan.batch]
        begin = self._clock()
        results = self._answers(model, parts, plan)
        seconds = self._clock() - begin
        with self._changed:
            late = seconds > model.cost.predict(plan.load)
            if len(results) == len(parts) and not any(isinstance(result, SilkrecError) for result in results):
                model.cost.observe(plan.load, seconds)
        self._deliver([Done(placed.ticket, result) for placed, result in zip(plan.batch, results, strict=True)])
        self._count(plan, results, begin, seconds, late)

    def _answers(self, model: ServingModel, parts: list[Part], plan: Plan) -> list[InferAnswer | SilkrecError]:
        try:
            return model.run(parts)
        except Exception as error:
            if len(parts) == 1:
                return [_explained(error)]
            log.warning("a batch of %d failed; its requests run one by one", len(parts), exc_info=error)
        self.counters.batches_retried += 1
        return [self._alone(model, part, placed) for part, placed in zip(parts, plan.batch, strict=True)]

    def _alone(self, model: ServingModel, part: Part, placed: Placed) -> InferAnswer | SilkrecError:
        if placed.ticket.deadline <= self._clock():
            return _unrun(Refused(placed.ticket, "deadline"))
        try:
            return model.run([part])[0]
        except Exception as error:  # noqa: BLE001
            return _explained(error)

    def _count(
        self, plan: Plan, results: Sequence[InferAnswer | SilkrecError], begin: float, seconds: float, late: bool
    ) -> None:
        counters = self.counters
        counters.batch_size.add(len(plan.batch))
        counters.batch_s.add(seconds)
        counters.late_batches += late
        for placed, result in zip(plan.batch, results, strict=True):
            counters.queue_s.add(begin - placed.ticket.arrived)
            if isinstance(result, SilkrecError):
                counters.outcomes["error"] += 1
                continue
            counters.outcomes["trimmed" if result.reason else "scored"] += 1
            counters.history_rows += placed.ticket.rows
            counters.candidates_scored += placed.candidates
            counters.candidates_unscored += placed.ticket.candidates - placed.candidates

    def _abandon(self) -> None:
        """Whoever still waits hears it now, not at its deadline."""
        with self._changed:
            self._stopping = True
            waiting, calls = self._scheduler.drain(), list(self._calls)
            self._calls.clear()
        gone = InferenceUnavailable("the engine stopped before this request ran")
        self._deliver([Done(ticket, gone) for ticket in waiting])
        for future, _ in calls:
            future.set_exception(gone)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked for the work
        future.set_exception(error)


def _unrun(refused: Refused) -> InferAnswer | SilkrecError:
    request = cast("InferRequest", refused.ticket.payload)
    if request.candidate is None:
        return DeadlineExceeded("the history could not be encoded before the deadline")
    return cast("ServingModel", refused.ticket.lane).unscored(request, refused.reason)


def _explained(error: Exception) -> SilkrecError:
    if isinstance(error, SilkrecError):
        return error
    log.error("the model failed on one request", exc_info=error)
    return SilkrecError(f"the model failed on this request ({type(error).__name__})")
