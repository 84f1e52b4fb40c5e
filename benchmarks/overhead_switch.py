"""One service whose metrics or tracing hooks can be taken out and put back while it runs, for `benchmarks/overhead.py`.

    SILKREC_STATE_DIR=… python -m benchmarks.overhead_switch serve recommender

One process and one memory layout for every way, so that the ways differ by nothing else: two processes of the very same
code differ by more than what is asked about. A line with the name of a way, sent to the Unix socket `switch` of the
state folder, is answered with the same line once the way is in force.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, Summary
from prometheus_client.metrics import MetricWrapperBase

from services.cli.main import main
from shared.observability import context, tracing
from shared.observability.context import RequestContext

AS_IT_IS, NO_METRICS, NO_HOOKS = "as it is", "no metrics", "no tracing hooks"
SOCKET = "switch"
_COUNTED = (
    (MetricWrapperBase, ("labels",)),
    (Counter, ("inc",)),
    (Gauge, ("inc", "dec", "set")),
    (Histogram, ("observe",)),
    (Summary, ("observe",)),
)
_HOOKS = ("serving", "calling", "note")


class _Ids:
    """What `tracing.serving` would be had nobody thought of spans: ids are there for logs and answers all the same."""

    __slots__ = ("_ids", "_token")

    def __init__(self, _name: str, request_id: str | None, traceparent: str | None) -> None:
        self._ids = RequestContext.accept(request_id, traceparent)

    def __enter__(self) -> RequestContext:
        self._token = context.enter(self._ids)
        return self._ids

    def __exit__(self, *_: object) -> None:
        context.leave(self._token)


_NOTHING = contextlib.nullcontext()


def _itself(metric: Any, *_: Any, **__: Any) -> Any:
    return metric


def _ignored(*_: Any, **__: Any) -> None:
    return None


def _nothing_around(_name: str) -> contextlib.AbstractContextManager[None]:
    return _NOTHING


class Switch:
    """Everything outside `AS_IT_IS` is an empty function in its place: a call remains, 0.05 us, and its arguments."""

    def __init__(self) -> None:
        self._metrics = [(kind, name, getattr(kind, name)) for kind, names in _COUNTED for name in names]
        self._hooks = [(name, getattr(tracing, name)) for name in _HOOKS]
        self._ways: dict[str, Callable[[], None]] = {
            AS_IT_IS: self.restore,
            NO_METRICS: self._without_metrics,
            NO_HOOKS: self._without_hooks,
        }

    def to(self, way: str) -> None:
        self.restore()
        self._ways[way]()

    def restore(self) -> None:
        for kind, name, method in self._metrics:
            setattr(kind, name, method)
        for name, hook in self._hooks:
            setattr(tracing, name, hook)

    def _without_metrics(self) -> None:
        for kind, name, _ in self._metrics:
            setattr(kind, name, _itself if name == "labels" else _ignored)

    def _without_hooks(self) -> None:
        for name, without in zip(_HOOKS, (_Ids, _nothing_around, _ignored), strict=True):
            setattr(tracing, name, without)


def listen(path: Path, switch: Switch) -> None:
    """Obeys one caller after the other, for ever."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    while True:
        with server.accept()[0] as caller, caller.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                switch.to(line.strip())
                lines.write(line)
                lines.flush()


if __name__ == "__main__":
    door = Path(os.environ["SILKREC_STATE_DIR"]) / SOCKET
    threading.Thread(target=listen, args=(door, Switch()), name="switch", daemon=True).start()
    main()
