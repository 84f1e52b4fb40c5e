"""Where documented commands are carried out: a home like a clone, a shop's files in it, one suite over it, and a shell
whose variables stay from command to command."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.e2e import forked_silkrec
from tests.e2e.documented_elsewhere import CUT
from tests.e2e.suite import DEADLINE_MS, Suite, serve_all, until
from tests.pages import REPOSITORY

COMMAND_S = 60
USERS, ITEMS, EVENTS_EACH = 60, 40, 16
DEFAULT_PORTS = {"recommender": 8080, "features": 8081, "inference": 8082, "grpc": 8083, "jobs": 8084}


@dataclass
class Home:
    """`folder` is the working folder of every command. Made by `home`."""

    folder: Path
    suite: Suite

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """By sh, as if typed after those before it; what it sets stays set, and is exported."""
        variables = self.folder.parent / "variables"
        script = f'set -a\n[ ! -f "{variables}" ] || . "{variables}"\n{{ {self.rewritten(command)}\n}}\n'
        script += f'status=$?\nexport -p | grep -v " \\(PWD\\|OLDPWD\\|SHLVL\\|_\\)=" > "{variables}"\nexit $status\n'
        return self._finished(["sh", "-c", script])

    def python(self, program: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "example.py").write_text(program)
        return self.run("python3 example.py")

    def rewritten(self, command: str) -> str:
        """Ports and folders are the test's, `m-…` and `i-…` are what the last `train` and `index build` printed, and
        what `CUT` names is left out."""
        for part in CUT:
            command = command.replace(part, "")
        for name, port in DEFAULT_PORTS.items():
            command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.suite.ports[name]}")
        for path in ("/backups", "/etc/silkrec-nginx"):
            command = re.sub(rf"(?<![\w.]){path}", str(self.folder.parent / path.lstrip("/")), command)
        if "m-…" in command:
            command = command.replace("m-…", self._newest("models"))
        if "i-…" in command:
            command = command.replace("i-…", self._newest("indexes", of_model=self._newest("models")))
        return command

    def _newest(self, kind: str, of_model: str | None = None) -> str:
        """A version's name begins with its time. Raises LookupError before the first is published."""
        for path in sorted((self.folder / "var/artifacts" / kind).glob("*/manifest.json"), reverse=True):
            if of_model is None or json.loads(path.read_text())["model_version"] == of_model:
                return path.parent.name
        raise LookupError(f"no {kind} were published before a command that names one")

    def _finished(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.suite.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )


@contextlib.contextmanager
def home(folder: Path) -> Iterator[Home]:
    """A folder as after `git clone` and `./run setup`, with a shop's files that the pages import, and a suite in it."""
    clone, programs = folder / "clone", folder / "bin"
    clone.mkdir()
    programs.mkdir()
    shutil.copytree(REPOSITORY / "infra", clone / "infra")
    # Copies, because commands write there: never through a link into the repository.
    for name in ("run", "silkrec.yaml"):
        shutil.copy(REPOSITORY / name, clone)
    write_shop(clone)
    door = programs / "door"
    forked_silkrec.stub(programs, door)
    told = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    # Else `silkrec doctor` would call the suite sick where tests keep the machine busy: of 60 answers one may be late.
    patient = {"RECOMMENDER__DEADLINE_MS": str(DEADLINE_MS)}
    with _forking(door, told), serve_all(clone, clone / "silkrec.yaml", **patient) as suite:
        suite.environment.update(told)
        until(door.exists, "the interpreter that forks is ready")
        # In README's order the demo has data by now.
        answer = suite.http.post("/v1/items", json={"items": [{"item_id": "item-1", "title": "Item 1"}]})
        assert answer.status_code < 300, answer.text
        until(lambda: suite.http.get("/v1/popular").json().get("items"), "there is something to serve")
        yield Home(clone, suite)


@contextlib.contextmanager
def _forking(door: Path, told: dict[str, str]) -> Iterator[None]:
    environment = {**os.environ, **told}
    command = [sys.executable, forked_silkrec.__file__, str(door)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def write_shop(folder: Path) -> None:
    """events.csv, items.csv and users.csv: users who like one of four brands."""
    dice, began = random.Random(5), datetime.now(UTC) - timedelta(days=3)
    kinds = ("click",) * 11 + ("add_to_cart",) * 3 + ("purchase",) * 2
    with (folder / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("user", "item", "type", "time"))
        for user in range(1, USERS + 1):
            for place in range(EVENTS_EACH):
                at = began + timedelta(minutes=user + 10 * place)
                item = dice.randrange(ITEMS // 4) * 4 + user % 4 + 1
                rows.writerow((f"u{user}", f"item-{item}", kinds[place], at.isoformat(timespec="seconds")))
    with (folder / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("item_id", "title", "categories", "price", "brand"))
        for item in range(1, ITEMS + 1):
            rows.writerow((f"item-{item}", f"Item {item}", f"c{item % 4}|all", 10 + item, f"b{item % 4}"))
    with (folder / "users.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("user_id", "country"))
        rows.writerows((f"u{user}", ("DE", "FR")[user % 2]) for user in range(1, USERS + 1))
