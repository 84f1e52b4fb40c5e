"""Who works on a chunk: `host:pid`, and whether that process is known to be dead."""

from __future__ import annotations

import os
import socket

import psutil


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(worker: str) -> bool:
    """Only of this host, and only when no such process is left: everybody else's lease has to run out. Wrong it may be
    where two containers share a name; then work is done twice, and the token lets one of them commit."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
