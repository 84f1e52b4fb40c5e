"""Redis as cache and as broker. A cache may forget, a broker may not; either one that refuses writes is no use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import ResponseError

from services.cli import embedded_redis
from services.cli.doctor.database import skew
from services.cli.doctor.finding import Finding, judged
from services.cli.supervisor import holder
from shared.errors import ConfigurationError
from shared.settings.load import Loaded
from shared.settings.roots import EMBEDDED, Settings
from shared.storage.redis import RedisFailure, connect

ASK_S = 2.0
PINGS = 5
# So near to its bound a cache evicts histories, or under noeviction refuses them.
FULL = 0.95


def examine(loaded: Loaded) -> Iterator[Finding]:
    settings = loaded.settings
    own = settings.redis.url.get_secret_value() == EMBEDDED
    where = _shown(settings.redis_url())
    try:
        server = embedded_redis.binary() if own else ""
        told = asyncio.run(_asked(settings.redis_url(), settings))
    except ConfigurationError as error:
        yield Finding("redis", "fail", error.detail, "set SILKREC_REDIS__URL", where)
        return
    if told is None and own and holder(settings) is None:
        yield Finding("redis", "warn", f"embedded ({server}), not running", "`silkrec serve all` starts it", where)
    elif told is None:
        yield Finding("redis", "fail", "does not answer", "start it, or set SILKREC_REDIS__URL", where)
    else:
        yield from cache(told, settings.redis.read_timeout_ms, where)
        yield from server_health("redis", told, where)
    url = settings.broker.url.get_secret_value()
    if url.startswith(("redis://", "rediss://")):
        answered = asyncio.run(_asked(url, settings))
        if answered is not None:  # that it is away is the broker's own finding
            yield from as_broker(answered, _shown(url))
            yield from server_health("broker memory", answered, _shown(url))


async def _asked(url: str, settings: Settings) -> dict[str, Any] | None:
    """INFO, with `ping_ms`, `skew_s` and, where the server shows its configuration, `maxmemory-policy` in it."""
    client = connect(url, settings.redis, timeout_ms=round(ASK_S * 1000))
    try:
        await client.ping()
        pings = []
        for _ in range(PINGS):
            began = time.perf_counter()
            await client.ping()
            pings.append((time.perf_counter() - began) * 1000)
        told = dict(await client.info())
        seconds, micros = await client.time()
        told |= {"ping_ms": sorted(pings)[PINGS // 2], "skew_s": seconds + micros / 1e6 - time.time()}
        try:
            shown: Any = await client.config_get("maxmemory-policy")
            told |= shown
        except ResponseError:  # hosted servers keep CONFIG to themselves; INFO has the policy too
            told.setdefault("maxmemory-policy", told.get("maxmemory_policy", ""))
    except RedisFailure:
        return None
    finally:
        await client.aclose(close_connection_pool=True)
    return told


def cache(told: Mapping[str, Any], read_timeout_ms: float, where: str) -> Iterator[Finding]:
    ping = float(told["ping_ms"])
    mend = f"put Redis nearer or look at its load (SLOWLOG GET); redis.read_timeout_ms is {read_timeout_ms:g}"
    yield judged(
        "redis", ping, f"answers in {ping:.1f} ms", mend, warn=read_timeout_ms / 4, fail=read_timeout_ms, where=where
    )
    policy, bound = str(told.get("maxmemory-policy", "")), int(told.get("maxmemory", 0))
    share = int(told.get("used_memory", 0)) / bound if bound else 0.0
    if policy == "noeviction" and bound:
        said = f"noeviction, {share:.0%} of maxmemory: writes are refused at 100 %"
        mend = "CONFIG SET maxmemory-policy volatile-lru: all of a cache can be rebuilt"
        yield Finding("redis memory", "fail" if share > FULL else "warn", said, mend, where)
    elif not bound:
        mend = "CONFIG SET maxmemory, and maxmemory-policy volatile-lru; 10,000 full histories are 260 MB"
        yield Finding("redis memory", "warn", "no maxmemory: it grows until the machine has none left", mend, where)
    else:
        mend = "raise maxmemory, or lower features.history.max_events or features.history.ttl_s"
        evicted = int(told.get("evicted_keys", 0))
        said = f"{share:.0%} of maxmemory, {policy or 'policy not shown'}, {evicted} keys evicted since its start"
        yield judged("redis memory", evicted, said, mend, warn=0, where=where)
    yield skew("redis clock", float(told["skew_s"]), where)


def as_broker(told: Mapping[str, Any], where: str) -> Iterator[Finding]:
    policy, bound = str(told.get("maxmemory-policy", "")), int(told.get("maxmemory", 0))
    if bound and policy.startswith("allkeys"):
        mend = "CONFIG SET maxmemory-policy noeviction, or give the broker a Redis of its own (SILKREC_BROKER__URL)"
        yield Finding("broker memory", "fail", f"{policy} may evict the queue", mend, where)
    if told.get("aof_enabled") == 0 and not told.get("rdb_last_save_time"):
        yield Finding("broker persistence", "ok", "none: lost wake-ups are sent again by the sweeper", "", where)


def server_health(what: str, told: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """What makes a server refuse writes though it answers pings."""
    if told.get("rdb_last_bgsave_status", "ok") != "ok" or told.get("aof_last_write_status", "ok") != "ok":
        mend = "free its disk or CONFIG SET stop-writes-on-bgsave-error no: a cache needs no persistence"
        yield Finding(what, "fail", "its last write to disk failed, so it refuses writes", mend, where)
    if told.get("role") in ("slave", "replica"):
        mend = "set SILKREC_REDIS__URL to its primary"
        yield Finding(what, "fail", "is a replica: it takes no writes", mend, where)
    if told.get("loading"):
        yield Finding(what, "warn", "is loading its data", "wait until it has", where)


def _shown(url: str) -> str:
    return url if "@" not in url else f"{url.split('://')[0]}://…@{url.rpartition('@')[2]}"
