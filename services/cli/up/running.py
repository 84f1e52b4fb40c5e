"""What a running supervisor says of itself."""

from __future__ import annotations

import contextlib
import json
import time

from services.cli.supervisor import holder, state_file
from shared.errors import SilkrecError
from shared.settings.roots import Settings

# From the lock to the first published state: a database's schema at most, which is done before.
SAID_S = 10.0
LOOK_S = 0.05


def published(settings: Settings) -> dict[str, str]:
    """Service to base URL, once the supervisor has said it. Raises SilkrecError."""
    deadline = time.monotonic() + SAID_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            told = json.loads(state_file(settings).read_text("utf-8"))
            if told["pid"] == holder(settings):
                return {name: child["url"] for name, child in told["services"].items()}
        if time.monotonic() > deadline:
            raise SilkrecError(f"the supervisor does not say what it runs; see {settings.state / 'log'}")
        time.sleep(LOOK_S)


def supervisor_pid(settings: Settings) -> int | None:
    """None when none runs. Raises SilkrecError when a holder of the lock does not say who it is."""
    deadline = time.monotonic() + SAID_S
    while (pid := holder(settings)) == 0:
        if time.monotonic() > deadline:
            raise SilkrecError(f"somebody holds {settings.state}/run/suite.lock and does not say who")
        time.sleep(LOOK_S)
    return pid
