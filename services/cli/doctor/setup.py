"""Of this machine and installation: Python, the state folder, open files of what runs here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import sys
from collections.abc import Iterator

import psutil

from services.cli.doctor.deployment import Deployment
from services.cli.doctor.finding import Finding, judged
from services.recommender.journal.drain import unknown
from services.recommender.journal.journal import FOLDER
from services.recommender.journal.segment import SUFFIX
from shared.settings.roots import Settings

LOW_DISK_BYTES, LITTLE_DISK_BYTES = 1 << 30, 5 << 30
# nginx alone takes two a request under way; systemd's own default of 1,024 is what people run into.
FEW_FILES = 4096
NEEDED = ("torch", "faiss", "grpc", "redis", "pymysql", "cryptography")


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("python", "fail", f"{version}, without {', '.join(missing)}", "run `./run setup`", sys.prefix)
    return Finding("python", "ok", f"{version}, {os.cpu_count()} cores", "", sys.prefix)


def state(settings: Settings) -> Iterator[Finding]:
    folder = settings.state
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".doctor"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding(
            "state", "fail", f"cannot be written: {error.strerror}", "make it writable, or set SILKREC_STATE_DIR",
            str(folder),
        )  # fmt: skip
        return
    yield disk("state", str(folder), shutil.disk_usage(folder).free)
    artifacts = settings.artifacts_dir()
    if artifacts.exists() and artifacts.stat().st_dev != folder.stat().st_dev:
        yield disk("artifacts disk", str(artifacts), shutil.disk_usage(artifacts).free)


def journal(settings: Settings) -> Iterator[Finding]:
    """Served slates that lie here and that no process of this release brings to the database."""
    folder, found = settings.state / FOLDER, []
    for path in sorted(folder.glob(f"*/*{SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):  # drained meanwhile
            if (why := unknown(path)) is not None:
                found.append(f"{path.relative_to(folder)}: {why}")
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        mend = "start the newer release, which drains them; one that is damaged can only be removed"
        yield Finding("journal files", "warn", f"{found[0]}{more}", mend, str(folder))


def disk(what: str, where: str, free: float) -> Finding:
    mend = "free some space (`silkrec backup list`, var/log), or set SILKREC_STATE_DIR to another disk"
    return judged(
        what, -free, f"{free / 1e9:.1f} GB free", mend, warn=-LITTLE_DISK_BYTES, fail=-LOW_DISK_BYTES, where=where
    )


def open_files(deployment: Deployment) -> Iterator[Finding]:
    """Of the processes that a supervisor here runs; else what one that is started from this shell would get."""
    worst: Finding | None = None
    for name, pid in deployment.pids.items():
        try:
            process = psutil.Process(pid)
            limit, in_use = process.rlimit(psutil.RLIMIT_NOFILE)[0], process.num_fds()
        except psutil.Error:  # gone meanwhile, or another user's
            continue
        finding = files(f"process {pid}, {name}", limit, in_use)
        if finding.verdict != "ok":
            yield finding
        worst = worst or finding
    if worst is None:
        worst = files("this shell", resource.getrlimit(resource.RLIMIT_NOFILE)[0], 0)
    if worst.verdict == "ok" or not deployment.pids:
        yield worst


def files(where: str, limit: int, in_use: int) -> Finding:
    mend = "`ulimit -n 65536` before the start, or LimitNOFILE=65536 in the unit"
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", "ok", f"{in_use} of any number", "", where)
    found = f"{in_use} of {limit}"
    if in_use > 0.8 * limit:
        return Finding("open files", "fail", found, mend, where)
    return Finding("open files", "warn" if limit < FEW_FILES else "ok", found, mend if limit < FEW_FILES else "", where)
