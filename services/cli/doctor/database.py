"""The database: reachable, of this release's schema, quick, with the right time; and what it says of keys, the release
and backups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from sqlalchemy import Connection, text

from services.cli.context import opened
from services.cli.doctor.finding import Finding, judged
from services.cli.serve import SERVICES
from shared.contracts.manifest import IndexManifest, ModelManifest, Release
from shared.errors import ArtifactError, DatabaseUnavailable, SilkrecError
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage import backup_time, deployments, keys, migrate
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.web.auth import is_loopback

# A miss in Redis reads the database within a request's 68 ms; a near server answers within 1 ms.
SLOW_MS, TOO_SLOW_MS = 10.0, 40.0
# Deadlines do not mind (they are monotonic), orders of events do.
SKEW_S, WRONG_S = 1.0, 60.0
INDEX_OLD_S, BACKUP_OLD_S = 3 * 86400.0, 26 * 3600.0  # as the alerts have them
PINGS = 5


def examine(loaded: Loaded) -> Iterator[Finding]:
    try:
        with opened(loaded, upgrade=False) as database:
            name = database.url.render_as_string(hide_password=True)
            yield from _schema(database, name)
            if migrate.pending(database):
                return
            yield from _content(loaded.settings, database)
    except DatabaseUnavailable as error:
        yield Finding("database", "fail", error.detail, "start it, or set SILKREC_DATABASE__URL", _named(loaded))
    except SilkrecError as error:
        yield Finding("database", "fail", error.detail, "set SILKREC_DATABASE__URL", _named(loaded))


def _schema(database: Database, name: str) -> Iterator[Finding]:
    now = migrate.revision(database)
    if migrate.pending(database):
        mend = "`silkrec database upgrade`, or start a service"
        yield Finding("database", "warn", f"schema {now or 'absent'}: older than this release", mend, name)
        return
    with database.read() as connection:
        took_ms, skew_s = _ping(connection), _skew(connection, is_sqlite=database.is_sqlite)
    yield ping(took_ms, f"schema {now}", name)
    if skew_s is not None:
        yield skew("database clock", skew_s, name)


def ping(took_ms: float, about: str, where: str) -> Finding:
    mend = (
        "put the database nearer, or look at its load: SHOW PROCESSLIST; database.statement_timeout_s bounds the wait"
    )
    return judged(
        "database", took_ms, f"{about}, answers in {took_ms:.1f} ms", mend,
        warn=SLOW_MS, fail=TOO_SLOW_MS, where=where,
    )  # fmt: skip


def skew(what: str, seconds: float, where: str) -> Finding:
    found = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine"
    return judged(
        what, abs(seconds), found, "run an NTP client on both machines", warn=SKEW_S, fail=WRONG_S, where=where
    )


def _ping(connection: Connection) -> float:
    """The median of a few, in ms: the first one pays for the connection."""
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        connection.scalar(text("SELECT 1"))
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)[PINGS // 2]


def _skew(connection: Connection, *, is_sqlite: bool) -> float | None:
    """Seconds that the server's clock is ahead; None where there is but one clock."""
    if is_sqlite:
        return None
    began = time.time()
    told = float(connection.scalar(text("SELECT UNIX_TIMESTAMP(NOW(6))")) or 0.0)
    return told - (began + time.time()) / 2


def _content(settings: Settings, database: Database) -> Iterator[Finding]:
    yield _keys(settings, keys.has_keys(database))
    with database.read() as connection:
        active = deployments.active(connection)
        backup_us = backup_time.told(connection)
    if active is None:
        yield Finding(
            "release", "warn", "nothing was promoted yet", "`silkrec index build`, then `silkrec releases promote`"
        )
    else:
        yield from artifacts(settings, active.release, time.time())
        yield backup(None if backup_us is None else time.time() - backup_us / 1e6)


def _keys(settings: Settings, has_keys: bool) -> Finding:
    public = [name for name, service in SERVICES.items() if not is_loopback(service.address(settings)[0])]
    if has_keys:
        return Finding("keys", "ok", "API keys exist: requests without one are refused")
    if public:
        return Finding("keys", "fail", f"none, and {', '.join(public)} is public", "`silkrec keys create server`")
    return Finding("keys", "ok", "none: this machine only")


def backup(age_s: float | None) -> Finding:
    mend = "`silkrec backup create --to DIR --keep 14`, daily"
    if age_s is None:
        return Finding("backup", "warn", "none was ever made", mend)
    return judged("backup", age_s, f"{age_s / 3600:.1f} h old", mend, warn=BACKUP_OLD_S, fail=7 * BACKUP_OLD_S)


def artifacts(settings: Settings, release: Release, now_s: float) -> Iterator[Finding]:
    store = ArtifactStore(settings.artifacts_dir())
    yield _folder(
        "model", release.model_version, lambda name: store.open_folder(ModelManifest, name), "`silkrec train`"
    )
    index = release.index_version
    checked = _folder("index", index, lambda name: store.open_folder(IndexManifest, name), "`silkrec index build`")
    yield checked
    if index is None or checked.verdict != "ok":
        return
    manifest = store.manifest(IndexManifest, index)
    if manifest.model_version not in (None, release.model_version):
        yield Finding(
            "index of the model", "fail",
            f"{index} was built from {manifest.model_version}, the release serves {release.model_version}: "
            "vectors of users and items do not meet",
            f"`silkrec index build --model {release.model_version}`, then `silkrec releases promote --index …`",
            release.release,
        )  # fmt: skip
    age_s = now_s - manifest.created_at.timestamp()
    mend = "`silkrec index build`, then `silkrec releases promote --index …`; a daily job does it"
    yield judged("index age", age_s, f"{age_s / 86400:.1f} days", mend, warn=INDEX_OLD_S, where=index)


def _folder(what: str, version: str | None, verify: Callable[[str], object], make: str) -> Finding:
    if version is None:
        return Finding(what, "warn", "the active release has none", make)
    try:
        verify(version)
    except ArtifactError as error:
        return Finding(what, "fail", error.detail, "`silkrec releases rollback`, or restore the folder", version)
    return Finding(what, "ok", "every checksum right", "", version)


def _named(loaded: Loaded) -> str:
    """Without its password."""
    url = loaded.settings.database_url()
    return url if "@" not in url else f"{url.split('://')[0]}://…@{url.rpartition('@')[2]}"
