"""`silkrec` for many commands: an interpreter that has imported it once, and forks for each.

A start of the command takes 1.1 to 2.6 s on two shared cores, nearly all of it imports; forty of them would take most
of the time that all documented commands may take. What runs is `services.cli.main.main`, in a process of its own, with
the caller's arguments, environment, folder and streams. `python forked_silkrec.py SOCKET` serves; `stub` writes the
command.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path

_STUB = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect({path!r})
    asked = json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}).encode()
    socket.send_fds(door, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    door.sendall(asked)
    answer = door.recv(4)
sys.exit(int(answer or b"70"))
"""


def stub(folder: Path, door: Path) -> None:
    """`folder/silkrec`, which asks the interpreter behind `door`."""
    path = folder / "silkrec"
    path.write_text(_STUB.format(python=sys.executable, path=str(door)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def serve(path: str) -> None:
    """Until it is killed; a child reaps itself."""
    main = importlib.import_module("services.cli.main")
    for module in main.COMMANDS.values():
        importlib.import_module(f"services.cli.{module}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        while True:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(caller)
            caller.close()


def _answer(caller: socket.socket) -> None:
    """In a child: carries the command out in a child of its own, so that whatever it does, its status is told."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(caller, 4, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += caller.recv(1 << 16)
    child = os.fork()
    if child == 0:
        caller.close()
        _carry_out(json.loads(asked), streams)
    _, status = os.waitpid(child, 0)
    caller.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
    os._exit(0)


def _carry_out(asked: dict[str, object], streams: list[int]) -> None:
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    os.environ.clear()
    os.environ.update(asked["environment"])  # type: ignore[call-overload]
    os.chdir(str(asked["folder"]))
    sys.argv = ["silkrec", *asked["arguments"]]  # type: ignore[misc]
    status = 1
    try:
        importlib.import_module("services.cli.main").main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
