"""Private Prometheus and Alertmanager on infra's very files, with their times shortened."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from tests.nginx import REPOSITORY
from tests.servers import Process, free_port, program

INFRA = REPOSITORY / "infra"
SHORT_S = {"1m": 2, "2m": 2, "5m": 3, "10m": 3, "15m": 4, "30m": 6, "1h": 7, "6h": 10, "1d": 60}
"""What the times of rules become where half a second stands for the ten of a scrape: their order stays, and the
shortest window still holds four samples."""
_TIME = re.compile(r"(?P<before>\[|for: |offset )(?P<time>\d+[smhd])\b")


@contextlib.contextmanager
def alertmanager(folder: Path, receiver_url: str, changes: Mapping[str, str]) -> Iterator[str]:
    """Its base URL. `changes`: text of the file to what stands there instead; each must be found."""
    folder.mkdir(parents=True)
    told = {"http://127.0.0.1:8085": receiver_url, **changes}
    config = _changed(INFRA / "alertmanager" / "alertmanager.yml", folder, told)
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus-alertmanager", "alertmanager"), f"--config.file={config}"]
    command += [f"--storage.path={folder / 'data'}", f"--web.listen-address={address}", "--cluster.listen-address="]
    with _running(command, folder / "log", f"http://{address}/-/ready"):
        yield f"http://{address}"


@contextlib.contextmanager
def prometheus(
    folder: Path,
    targets: Sequence[tuple[str, str]],
    alertmanager_url: str,
    changes: Mapping[str, str],
    rules: Mapping[str, str],
) -> Iterator[str]:
    """Its base URL. `targets`: services and their base URLs; `rules`: as `changes`, to the rules, whose windows and
    `for` are those of SHORT_S."""
    (folder / "rules").mkdir(parents=True)
    (folder / "targets").mkdir()
    here = f"127.0.0.1:{free_port()}"
    told = {"127.0.0.1:9093": alertmanager_url.removeprefix("http://"), "127.0.0.1:9090": here, **changes}
    config = _changed(INFRA / "prometheus" / "prometheus.yml", folder, told)
    for path in (INFRA / "prometheus" / "rules").glob("*.yml"):
        (folder / "rules" / path.name).write_text(shortened(path.read_text()))
    for old, new in rules.items():
        found = 0
        for path in (folder / "rules").glob("*.yml"):
            text = path.read_text()
            found += text.count(old)
            path.write_text(text.replace(old, new))
        assert found, f"no rule has {old!r}"
    listed = [f"- {{targets: ['{url.removeprefix('http://')}'], labels: {{service: {name}}}}}" for name, url in targets]
    (folder / "targets" / "all.yml").write_text("\n".join(listed))
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={here}"]
    with _running(command, folder / "log", f"http://{here}/-/ready"):
        yield f"http://{here}"


def shortened(rules: str) -> str:
    """Each window, offset and `for` of the shipped rules; nothing else is another."""
    return _TIME.sub(lambda found: f"{found['before']}{SHORT_S[found['time']]}s", rules)


def _changed(path: Path, folder: Path, changes: Mapping[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, f"{path.name} has no {old!r}"
        text = text.replace(old, new)
    (folder / path.name).write_text(text)
    return folder / path.name


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path, url: str) -> Iterator[None]:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    server = Process(command, log, answers)
    server.start()
    try:
        yield
    finally:
        server.kill()
