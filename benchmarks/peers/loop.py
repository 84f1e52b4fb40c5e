"""One event loop for all trials: gRPC's poller, which a process has once, calls into the loops of earlier ones, and a
closed loop answers each call with a traceback."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return _runner().run(work)


@functools.cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
