"""What a process uses, as it is exported; several processes in one folder are added up, a disk is not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from shared.observability.metrics import Metrics
from shared.observability.resources import PoolUse, ResourceMetrics
from shared.settings.roots import DatabaseSettings, RedisSettings
from shared.storage.database import Database
from shared.storage.redis import connect, pool_use


def exported(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        sample.name.removeprefix("silkrec_test_") + "".join(f"/{v}" for v in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_cpu_memory_disk_and_pools_are_sampled(tmp_path: Path) -> None:
    metrics = Metrics("test")
    resources = ResourceMetrics(metrics, state=tmp_path, pools={"database": lambda: PoolUse(3, 8, 2)})
    resources.sample()
    first = exported(metrics)["cpu_seconds_total"]
    while os.times().user + os.times().system < first + 0.05:
        sum(range(10_000))
    resources.sample()
    now = exported(metrics)
    assert now["cpu_seconds_total"] >= first + 0.04
    assert now["resident_memory_bytes"] > 10_000_000
    assert 0 < now["state_free_bytes"] <= now["state_size_bytes"]
    assert [now[f"pool_{name}/database"] for name in ("in_use", "limit", "waiting")] == [3, 8, 2]


def test_a_state_folder_that_is_gone_costs_the_disk_figures_alone(tmp_path: Path) -> None:
    metrics = Metrics("test")
    ResourceMetrics(metrics, state=tmp_path / "gone", pools={}).sample()
    now = exported(metrics)
    assert now["resident_memory_bytes"] > 0
    assert now["state_size_bytes"] == 0


def test_a_late_event_loop_is_seen(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    now_s = 100.0
    naps = iter([0.25, 0.25 + 0.04])

    async def sleep(_seconds: float) -> None:
        nonlocal now_s
        nap = next(naps, None)
        if nap is None:
            raise Stop
        now_s += nap

    metrics = Metrics("test")
    resources = ResourceMetrics(metrics, state=tmp_path, pools={}, sleep=sleep, clock=lambda: now_s)
    try:
        asyncio.run(resources.run())
    except Stop:
        found = exported(metrics)
    assert found["event_loop_delay_seconds_count"] == 2
    assert found["event_loop_delay_seconds_bucket/0.001"] == 1
    assert found["event_loop_delay_seconds_bucket/0.05"] == 2


def test_a_database_says_who_has_a_connection_and_who_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = Database(f"sqlite:///{tmp_path / 'x.db'}", DatabaseSettings(pool_size=2))
        both, go = threading.Barrier(3), threading.Event()

        def hold(meet: bool) -> None:
            with database.read():
                if meet:
                    both.wait(10)
                    assert go.wait(10)

        asked = [asyncio.create_task(database.run(hold, meet)) for meet in (True, True, False)]
        await asyncio.to_thread(both.wait, 10)
        assert database.use() == PoolUse(2, 2, 1)
        go.set()
        await asyncio.gather(*asked)
        over = database.use()
        assert (over.in_use, over.waiting) == (0, 0)
        assert 0 < over.waited_s < 10
        database.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_processes_of_one_folder_add_their_cpu_and_share_their_disk(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from shared.observability.metrics import Metrics\n"
        "from shared.observability.resources import ResourceMetrics\n"
        "m = Metrics('test'); ResourceMetrics(m, state=pathlib.Path('/'), pools={}).sample()\n"
        "print('up', flush=True); sys.stdin.readline(); sys.stdout.write(m.render().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    text, _ = processes[0].communicate("\n", timeout=60)
    processes[1].communicate("\n", timeout=60)
    found = {
        sample.name.removeprefix("silkrec_test_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }
    size = os.statvfs("/").f_frsize * os.statvfs("/").f_blocks
    assert found["state_size_bytes"] == size
    assert found["resident_memory_bytes"] > 2 * 15_000_000
    assert found["cpu_seconds_total"] > 0.1


def test_redis_says_who_waited_for_a_connection(redis_url: str) -> None:
    async def scenario() -> None:
        client = connect(redis_url, RedisSettings(max_connections=1), timeout_ms=5000)
        pool: Any = client.connection_pool
        held = await pool.get_connection()
        assert pool_use(client) == PoolUse(1, 1, 0, 0.0)
        asked: asyncio.Future[bool] = asyncio.ensure_future(client.ping())
        for _ in range(100):  # steps of the loop until the call has found nothing free
            if pool_use(client).waiting:
                break
            await asyncio.sleep(0)
        assert pool_use(client).waiting == 1
        await pool.release(held)
        assert await asked
        over = pool_use(client)
        assert (over.in_use, over.waiting) == (0, 0)
        assert over.waited_s > 0
        await client.aclose(close_connection_pool=True)

    asyncio.run(scenario())
