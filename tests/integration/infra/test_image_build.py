"""The Dockerfile's lines, carried out in order in a throw-away root without a container engine.

A mount namespace with an overlay over this machine's root stands for the base image: what is written goes to memory and
is gone with the test. RUN, COPY, ENV, WORKDIR, USER, HEALTHCHECK, ENTRYPOINT and CMD are taken from the file as they
are. Left to the bench trial, which needs a package index: what installs hatchling, pinned packages and Debian's gcc;
the quick trial has this environment's packages in their place. Needs root and overlayfs, and is skipped without.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.unit.infra.parts import REPOSITORY
from tests.unit.infra.test_images import instructions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
BUILD_S, INDEX_BUILD_S = 120, 1200
BASE = "${PYTHON_IMAGE}"
# What a package index is needed for, by a word of the line.
INDEX_LINES = ("hatchling", "--requirement", "apt-get")

_OUTSIDE = """
set -eu
mount -t tmpfs tmpfs /mnt
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root
root=/mnt/root
cp "$1" $root/built.sh; cp "$2" $root/started.sh
mount --bind /dev $root/dev
mount -t proc proc $root/proc 2>/dev/null || mount --rbind /proc $root/proc
chroot $root sh -eu /built.sh
stat -c 'state %u:%g %a' $root/var/lib/silkrec
mount -o remount,ro $root
mkdir /mnt/before
mount --bind $root/tmp /mnt/before
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
case "$3" in /tmp/*) # a clone that lies there brings the packages
    mkdir -p $root"$3"
    mount --bind /mnt/before"${3#/tmp}" $root"$3" ;;
esac
mount -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs $root/var/lib/silkrec
exec unshare -n chroot $root sh -eu /started.sh
"""
_LOOPBACK = """import fcntl, socket, struct
probe = socket.socket()
fcntl.ioctl(probe, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
"""


def chain(target: str) -> list[str]:
    """Stages that are built for it, in the file's order, those that are copied from included."""
    parents = {rest.split()[2]: rest.split()[0] for word, rest in instructions() if word == "FROM"}
    wanted, waiting = set(), [target]
    while waiting:
        stage = waiting.pop()
        wanted.add(stage)
        if parents[stage] != BASE:
            waiting.append(parents[stage])
        waiting += [word.split("=")[1] for word in " ".join(of_stage(stage, "COPY")).split() if "--from=" in word]
    return [stage for stage in parents if stage in wanted]


def of_stage(stage: str, wanted: str) -> list[str]:
    current, found = "", []
    for word, rest in instructions():
        current = rest.split()[2] if word == "FROM" else current
        if current == stage and word == wanted:
            found.append(rest)
    return found


def built(target: str, *, index: bool) -> str:
    """Shell lines that carry out the stages. One root serves all of them, so a COPY from another stage finds its files
    where they are already."""
    lines = [f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; export PATH"]
    # The base image's Python is for everybody; this machine's may lie in somebody's home.
    lines += [f"chmod o+rx {shlex.quote(str(folder))}" for folder in _above(sys.base_prefix, _packages())]
    current, stages = "", chain(target)
    for word, rest in instructions():
        if word == "FROM":
            current = rest.split()[2]
        if current not in stages:
            continue
        if word == "WORKDIR":
            lines.append(f"mkdir -p {rest}; cd {rest}")
        elif word == "COPY":
            lines += _copy(rest)
        elif word == "RUN":
            lines.append(rest if index or not any(part in rest for part in INDEX_LINES) else _without_index(rest))
    return "\n".join(lines)


def _above(*folders: str) -> list[Path]:
    return sorted({place for folder in folders for place in (Path(folder), *Path(folder).parents)})


def _packages() -> str:
    return sysconfig.get_paths()["purelib"]


def _copy(rest: str) -> list[str]:
    flags = [word for word in rest.split() if word.startswith("--")]
    *sources, to = [word for word in rest.split() if not word.startswith("--")]
    if any(flag.startswith("--from=") for flag in flags):
        assert sources == [to], "one root serves all stages"
        return [f"test -e {to}"]
    mode = next((flag.split("=")[1] for flag in flags if flag.startswith("--chmod=")), "")
    into = to if to.endswith("/") else f"{to}/" if to == "." else to
    made = [f"mkdir -p {into if into.endswith('/') else Path(into).parent}"]
    for source in sources:
        place = f"{into}{Path(source).name}" if into.endswith("/") else into
        made.append(f"cp -r {shlex.quote(str(REPOSITORY / source))} {place}")
        made += [f"chmod {mode} {place}"] if mode else []
    return made


def _without_index(line: str) -> str:
    """The parts of a line that need none, and this environment's packages for those that do."""
    parts = [part.strip() for part in line.split("&&")]
    kept = [part for part in parts if not any(word in part for word in INDEX_LINES)]
    if any("--requirement" in part for part in parts):
        site = "/opt/silkrec/bin/python -c \"import sysconfig; print(sysconfig.get_paths()['purelib'])\""
        kept.append(f"echo {shlex.quote(_packages())} >$({site})/packages.pth")
    return " && ".join(kept) or "true"


def started(target: str) -> str:
    """As the image's user: the command, its health check until it is well, what may be written, and the end."""
    stages = chain(target)
    user, group = [rest for stage in stages for rest in of_stage(stage, "USER")][-1].split(":")
    setup = [f"export {pair}" for stage in stages for rest in of_stage(stage, "ENV") for pair in rest.split()]
    entry, command = (json.loads(of_stage("base", word)[-1]) for word in ("ENTRYPOINT", "CMD"))
    health = json.loads(of_stage("base", "HEALTHCHECK")[-1].partition(" CMD ")[2])
    as_user = f"setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs"
    return "\n".join(
        [
            f"{shlex.quote(sys.executable)} -c {shlex.quote(_LOOPBACK)}",
            *setup,
            f"cd {of_stage('base', 'WORKDIR')[-1]}",
            f"{as_user} {shlex.join([*entry, *command])} >/tmp/log 2>&1 & pid=$!",
            "left=120",
            f"until {as_user} {shlex.join(health)} 2>/tmp/health; do",
            "  left=$((left - 1)); kill -0 $pid && [ $left -gt 0 ] || { cat /tmp/log /tmp/health; exit 1; }; sleep 0.5",
            "done; echo healthy",
            "for place in /opt/silkrec /usr/local/lib/silkrec / /var/lib/silkrec /tmp; do",
            f"  {as_user} touch $place/probe 2>/dev/null && echo writes $place",
            "done",
            # As an engine would stop it; uvicorn ends in order, then by the same signal (143).
            "kill -TERM $pid; wait $pid || test $? = 143; echo ended",
        ]
    )


@pytest.fixture
def overlay() -> None:
    if os.geteuid() != 0 or "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs root and overlayfs")
    if not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("needs unshare and setpriv (util-linux)")
    trial = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
    trial += "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r && unshare -n true"
    if subprocess.run(["unshare", "-m", "sh", "-c", trial], capture_output=True, check=False).returncode != 0:
        pytest.skip("this root may make no namespaces")


def carried_out(folder: Path, target: str, *, index: bool) -> str:
    scripts = {"outside": _OUTSIDE, "built": built(target, index=index), "started": started(target)}
    for name, text in scripts.items():
        (folder / name).write_text(text)
    files = (str(folder / name) for name in scripts)
    command = ["unshare", "-m", "-p", "-f", "--kill-child", "sh", *files, sys.prefix]
    told = {name: value for name, value in os.environ.items() if not name.startswith(("SILKREC_", "PYTHON"))}
    limit_s = INDEX_BUILD_S if index else BUILD_S
    done = subprocess.run(command, capture_output=True, text=True, env=told, timeout=limit_s, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def assert_serves(told: str) -> None:
    lines = told.splitlines()
    assert "state 10001:10001 750" in lines
    assert [line for line in lines if line.startswith("writes ")] == ["writes /var/lib/silkrec", "writes /tmp"]
    assert "healthy" in lines
    assert lines[-1] == "ended"


def test_the_image_of_these_lines_serves_without_root_on_a_root_file_system_that_is_read_only(
    overlay: None, tmp_path: Path
) -> None:
    assert_serves(carried_out(tmp_path, "cpu", index=False))


@pytest.mark.bench
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_with_a_package_index_every_line_is_carried_out(overlay: None, tmp_path: Path, target: str) -> None:
    """Fills memory with the packages: 2 GB for `cpu`, which needs download.pytorch.org (where that is blocked pip tries
    for minutes a package); `cuda` brings CUDA's libraries where the index has them."""
    assert_serves(carried_out(tmp_path, target, index=True))
