"""The peers' own virtual environment, so that the suite's dependencies stay as they are."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HOME = ROOT / "var" / "bench-peers"
_PINS = Path(__file__).with_name("requirements.txt")
PEERS = ("litserve", "bentoml", "nvidia-pytriton")


def python() -> Path:
    """Its interpreter; made at the first use with the pins of requirements.txt and this environment's torch."""
    found, stamp = _HOME / ".venv" / "bin" / "python", _HOME / "stamp"
    torch = metadata.version("torch").partition("+")[0]
    wanted = hashlib.sha256(f"{_PINS.read_text('utf-8')}{torch}{sys.version}".encode()).hexdigest()
    if found.exists() and stamp.exists() and stamp.read_text("ascii") == wanted:
        return found
    print(f"making {_HOME} with litserve, bentoml, nvidia-pytriton and torch {torch}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", _HOME / ".venv"], check=True)
    install = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"torch=={torch}", "--requirement", str(_PINS)], check=True)
    stamp.write_text(wanted, "ascii")
    return found


def versions() -> dict[str, str]:
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PEERS!r}}}))"
    told = subprocess.run([python(), "-c", code], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(told)
    return found


def variables() -> dict[str, str]:
    """Of a peer's process: this tree importable, one thread a worker, nothing sent home, and for Triton's Python
    back end the shared library of the interpreter that it embeds."""
    libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{_HOME / '.venv' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(_HOME / "bentoml"),
    }
