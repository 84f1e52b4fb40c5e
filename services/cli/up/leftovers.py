"""What a supervisor that was killed left running.

Its children are told to end with it, and nearly all do within a second. One that hangs, or is stopped, keeps its port
and its socket, and the next start would be told of a taken address that nobody admits to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal

import psutil

from services.cli.supervisor import holder, state_file
from shared.settings.roots import Settings

# They were asked already, by the death of their parent; an engine finishes its batch within this.
END_S = 5.0
KILL_S = 5.0
# psutil reckons a birth from the time of boot, which moves with the clock.
SAME_BIRTH_S = 2.0


def end_leftovers(settings: Settings, end_s: float = END_S) -> list[str]:
    """Names of those that had to be killed. Does nothing while a supervisor lives; waits for the others to end."""
    if holder(settings) is not None:
        return []
    found = _found(settings)
    _, alive = psutil.wait_procs(list(found), end_s)
    for process in alive:
        # Each leads a session of its own, so its group holds what it started and nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, KILL_S)
    if found:
        state_file(settings).unlink(missing_ok=True)
    return [found[process] for process in alive]


def _found(settings: Settings) -> dict[psutil.Process, str]:
    try:
        told = json.loads(state_file(settings).read_text("utf-8"))["services"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    processes = {}
    for name, child in told.items():
        with contextlib.suppress(psutil.NoSuchProcess, KeyError, TypeError):
            process = psutil.Process(child["pid"])
            if abs(process.create_time() - child["born"]) < SAME_BIRTH_S:
                processes[process] = str(name)
    return processes
