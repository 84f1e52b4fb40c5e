"""`silkrec doctor`: what is broken in this set-up, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import httpx
import typer
from rich.console import Console
from rich.table import Table

from services.cli import embedded_redis
from services.cli.context import load, opened, say_json
from services.cli.serve import SERVICES
from shared.contracts.manifest import IndexManifest, ModelManifest
from shared.errors import ArtifactError, ConfigurationError, DatabaseUnavailable, SilkrecError
from shared.settings.load import Loaded
from shared.settings.roots import EMBEDDED, Settings
from shared.storage import deployments, keys, migrate
from shared.storage.artifacts import ArtifactStore
from shared.storage.redis import RedisFailure, connect
from shared.web.auth import is_loopback

ASK_S = 2.0
LOW_DISK_BYTES = 1 << 30
Verdict = Literal["ok", "note", "broken"]
_STYLE = {"ok": "green", "note": "yellow", "broken": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`mend` says what to do; empty when nothing is to be done."""

    what: str
    verdict: Verdict
    found: str
    mend: str = ""


def command(ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Checks settings, stores, artifacts and running services. Exits with 1 when something is broken."""
    findings = list(examine(ctx))
    broken = [finding for finding in findings if finding.verdict == "broken"]
    if as_json:
        say_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    raise typer.Exit(1 if broken else 0)


def examine(ctx: typer.Context) -> Iterator[Finding]:
    yield _python()
    try:
        loaded = load(ctx)
    except ConfigurationError as error:
        yield Finding("settings", "broken", error.detail, "mend the named setting; `silkrec config show --origin`")
        return
    yield Finding("settings", "ok", f"from {loaded.config_file or 'defaults and environment'}")
    checks: tuple[Callable[[Loaded], Iterator[Finding]], ...] = (_state, _database, _redis, _services, _inference_door)
    for check in checks:
        yield from check(loaded)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    missing = [
        name
        for name in ("torch", "faiss", "grpc", "redis", "pymysql", "cryptography")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Finding("python", "broken", f"{version}, without {', '.join(missing)}", "run `./run setup`")
    return Finding("python", "ok", f"{version}, {os.cpu_count()} cores")


def _state(loaded: Loaded) -> Iterator[Finding]:
    state = loaded.settings.state
    try:
        state.mkdir(parents=True, exist_ok=True)
        probe = state / ".doctor"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding("state", "broken", f"{state}: {error.strerror}", "make it writable, or set SILKREC_STATE_DIR")
        return
    free = shutil.disk_usage(state).free
    verdict: Verdict = "ok" if free > LOW_DISK_BYTES else "broken"
    mend = "" if verdict == "ok" else "free some space, or set SILKREC_STATE_DIR to another disk"
    yield Finding("state", verdict, f"{state}, {free / 1e9:.1f} GB free", mend)


def _database(loaded: Loaded) -> Iterator[Finding]:
    began = time.perf_counter()
    try:
        with opened(loaded, upgrade=False) as database:
            name = database.url.render_as_string(hide_password=True)
            pending = migrate.pending(database)
            took_ms = (time.perf_counter() - began) * 1000
            if pending:
                yield Finding(
                    "database", "note", f"{name}: schema is older", "`silkrec database upgrade`, or start a service"
                )
                return
            yield Finding("database", "ok", f"{name}, {took_ms:.0f} ms")
            yield _keys(loaded.settings, keys.has_keys(database))
            with database.read() as connection:
                active = deployments.active(connection)
    except DatabaseUnavailable as error:
        yield Finding("database", "broken", error.detail, "start it, or set SILKREC_DATABASE__URL")
        return
    except SilkrecError as error:
        yield Finding("database", "broken", error.detail, "set SILKREC_DATABASE__URL")
        return
    if active is None:
        yield Finding(
            "release", "note", "nothing was promoted yet", "`silkrec index build`, then `silkrec releases promote`"
        )
        return
    yield from _artifacts(loaded.settings, active.release.model_version, active.release.index_version)


def _keys(settings: Settings, has_keys: bool) -> Finding:
    public = [name for name, service in SERVICES.items() if not is_loopback(service.address(settings)[0])]
    if has_keys:
        return Finding("keys", "ok", "API keys exist: requests without one are refused")
    if public:
        return Finding("keys", "broken", f"none, and {', '.join(public)} is public", "`silkrec keys create server`")
    return Finding("keys", "ok", "none: this machine only")


def _artifacts(settings: Settings, model: str | None, index: str | None) -> Iterator[Finding]:
    store = ArtifactStore(settings.artifacts_dir())
    yield _folder("model", model, lambda version: store.open_folder(ModelManifest, version), "`silkrec train`")
    yield _folder("index", index, lambda version: store.open_folder(IndexManifest, version), "`silkrec index build`")


def _folder(what: str, version: str | None, verify: Callable[[str], object], make: str) -> Finding:
    if version is None:
        return Finding(what, "note", "the active release has none", make)
    try:
        verify(version)
    except ArtifactError as error:
        return Finding(what, "broken", error.detail, "`silkrec releases rollback`, or restore the folder")
    return Finding(what, "ok", f"{version}, every checksum right")


def _redis(loaded: Loaded) -> Iterator[Finding]:
    settings = loaded.settings
    own = settings.redis.url.get_secret_value() == EMBEDDED
    if own:
        try:
            server = embedded_redis.binary()
        except ConfigurationError as error:
            yield Finding("redis", "broken", error.detail)
            return
    try:
        answered, took_ms = asyncio.run(_ping(settings))
    except ConfigurationError as error:
        yield Finding("redis", "broken", error.detail)
        return
    if answered:
        yield Finding("redis", "ok", f"answers in {took_ms:.1f} ms")
    elif own:
        yield Finding("redis", "note", f"embedded ({server}), not running", "`silkrec serve all` starts it")
    else:
        yield Finding("redis", "broken", "does not answer", "start it, or set SILKREC_REDIS__URL")


async def _ping(settings: Settings) -> tuple[bool, float]:
    client = connect(settings.redis_url(), settings.redis, timeout_ms=round(ASK_S * 1000))
    began = time.perf_counter()
    try:
        await client.ping()
    except RedisFailure:
        return False, 0.0
    finally:
        await client.aclose(close_connection_pool=True)
    return True, (time.perf_counter() - began) * 1000


def _services(loaded: Loaded) -> Iterator[Finding]:
    with httpx.Client(trust_env=False, timeout=ASK_S) as http:
        for name, service in SERVICES.items():
            host, port = service.address(loaded.settings)
            try:
                answer = http.get(f"http://{host}:{port}/ready")
                told = answer.json()
            except httpx.HTTPError:
                yield Finding(
                    name, "note", f"nothing answers on {host}:{port}", f"`silkrec serve {name}`, or `serve all`"
                )
                continue
            except ValueError:
                variable = f"SILKREC_{name.upper()}__PORT"
                yield Finding(name, "broken", f"another program serves {host}:{port}", f"set {variable} to a free port")
                continue
            wrong = {key: text for key, text in told.get("dependencies", {}).items() if text != "ok"}
            details = "; ".join(f"{key}: {text}" for key, text in wrong.items())
            state = "ready" if told.get("ready") else "not ready"
            yield Finding(name, "ok" if told.get("ready") else "note", f"{state}{f' ({details})' if details else ''}")


def _inference_door(loaded: Loaded) -> Iterator[Finding]:
    for target in loaded.settings.inference_targets():
        if not target.startswith("unix:"):
            continue
        path = target.removeprefix("unix:")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(ASK_S)
            probe.connect(path)
            yield Finding("inference socket", "ok", path)
            return
        yield Finding("inference socket", "note", f"nobody listens on {path}", "`silkrec serve inference`")


def _show(findings: list[Finding]) -> None:
    table = Table("", "What", "Found", "What to do")
    for finding in findings:
        style = _STYLE[finding.verdict]
        table.add_row(f"[{style}]{finding.verdict}[/{style}]", finding.what, finding.found, finding.mend)
    Console().print(table)
