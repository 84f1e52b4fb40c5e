"""uvicorn in a thread of this process, on a free loopback port: a real socket in front of a real application."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

START_S = 60.0
STOP_S = 30.0


class _Server(uvicorn.Server):
    """Says when it is up, so that nobody polls."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.up.set()


@contextlib.contextmanager
def listening(app: FastAPI, listener: socket.socket | None = None) -> Iterator[str]:
    """The base URL of `app`, whose lifespan runs in the server's thread."""
    listener = listener or free_listener()
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert server.up.wait(START_S), "the server did not come up"
        assert server.started, "the application's start failed"
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(STOP_S)
        listener.close()
    assert not thread.is_alive(), "the server did not end"


def free_listener() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
