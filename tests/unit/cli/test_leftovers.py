from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.cli.supervisor import state_file
from services.cli.up.leftovers import end_leftovers
from services.cli.up.plan import _taken
from shared.settings.roots import Settings


@pytest.fixture
def hung() -> Iterator[subprocess.Popen[bytes]]:
    """A child as the supervisor starts one, that answers nothing but SIGKILL."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    os.kill(process.pid, signal.SIGSTOP)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def publish(settings: Settings, process: subprocess.Popen[bytes], later_s: float = 0.0) -> None:
    born = psutil.Process(process.pid).create_time() + later_s
    state_file(settings).parent.mkdir(parents=True)
    told = {"pid": 1, "services": {"inference": {"pid": process.pid, "born": born, "starts": 1, "url": ""}}}
    state_file(settings).write_text(json.dumps(told))


def test_what_a_killed_supervisor_left_is_killed_and_named(tmp_path: Path, hung: subprocess.Popen[bytes]) -> None:
    settings = Settings(state_dir=tmp_path)
    publish(settings, hung)
    assert end_leftovers(settings, end_s=0.05) == ["inference"]
    assert hung.poll() is not None
    assert end_leftovers(settings) == []


def test_another_process_with_the_same_id_is_left_alone(tmp_path: Path, hung: subprocess.Popen[bytes]) -> None:
    settings = Settings(state_dir=tmp_path)
    publish(settings, hung, later_s=-60.0)
    assert end_leftovers(settings, end_s=0.05) == []
    assert hung.poll() is None


def test_a_file_that_says_nothing_usable_ends_nobody(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    state_file(settings).parent.mkdir(parents=True)
    for text in ("", "{}", '{"services": {"redis": {"pid": null, "born": null}}}'):
        state_file(settings).write_text(text)
        assert end_leftovers(settings) == []


def test_a_taken_port_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = _taken("--listen", "127.0.0.1", port)
        assert f"127.0.0.1:{port}: Address already in use; choose another by --listen" in line
        assert f"process {os.getpid()} has it: " in line
