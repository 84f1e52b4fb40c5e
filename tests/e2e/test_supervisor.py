from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis

from tests.e2e.suite import STOP_S, Suite, serve_all, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def pids(suite: Suite) -> list[int]:
    found = [row["pid"] for row in suite.running().values()]
    assert len(found) == 5
    return found


def gone(of: list[int]) -> None:
    deadline = time.monotonic() + STOP_S
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in of):
        assert time.monotonic() < deadline, "a service outlived its supervisor"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Suite]]:
    """The suite on embedded parts; the next one over the same state, once a test has ended it. A start takes 10 s."""
    folder = tmp_path_factory.mktemp("suite") / "a folder with spaces"
    started: list[Suite] = []
    with contextlib.ExitStack() as stack:

        def running() -> Suite:
            if not started or started[-1].process.poll() is not None:
                started.append(stack.enter_context(serve_all(folder)))
            return started[-1]

        yield running


def assert_doctor_explains_a_sick_suite(suite: Suite) -> None:
    """One service hangs, the cache refuses to forget, and Prometheus is away."""
    hung = suite.running()["features"]["pid"]
    with redis.Redis(unix_socket_path=str(suite.folder / "var/run/redis.sock")) as cache:
        policy = cache.config_get("maxmemory-policy")["maxmemory-policy"]
        cache.config_set("maxmemory-policy", "noeviction")
        os.kill(hung, signal.SIGSTOP)
        try:
            report = suite.silkrec("doctor", "--seconds", "0", "--prometheus", "http://127.0.0.1:1", failing=True)
        finally:
            os.kill(hung, signal.SIGCONT)
            cache.config_set("maxmemory-policy", policy)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert not report["ok"]
    assert (found["features"]["verdict"], found["redis memory"]["verdict"]) == ("fail", "warn"), report
    assert "hangs" in found["features"]["found"]
    assert "CONFIG SET maxmemory-policy" in found["redis memory"]["mend"]
    assert found["Prometheus"]["verdict"] == "fail"
    assert found["recommender"]["verdict"] != "fail", "what is well is not blamed"


def test_a_second_suite_over_the_same_state_is_refused_with_what_to_do(embedded: Callable[[], Suite]) -> None:
    suite = embedded()
    command = [sys.executable, "-m", "services.cli.main", "serve", "all"]
    second = subprocess.run(command, env=suite.environment, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    assert "SILKREC_STATE_DIR" in second.stderr
    until(lambda: suite.http.get("/ready").status_code == 200, "the first one is unharmed")


def test_a_killed_supervisor_leaves_no_service_behind_and_the_next_one_starts(embedded: Callable[[], Suite]) -> None:
    killed = embedded()
    running = pids(killed)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait(STOP_S)
    gone(running)
    again = embedded()
    assert again is not killed
    assert again.http.get("/ready").status_code == 200


def test_on_embedded_parts_the_suite_starts_with_nothing_installed_and_ends_together(
    embedded: Callable[[], Suite],
) -> None:
    suite = embedded()
    running = pids(suite)
    # Not at once: five services start on two cores, and a ping has 20 ms.
    until(lambda: suite.http.get("/ready").json()["dependencies"]["redis"] == "ok", "the embedded Redis answers")
    suite.until_answers(f"http://127.0.0.1:{suite.ports['jobs']}/ready")
    report = suite.silkrec("doctor", "--seconds", "0")
    assert report["ok"], report
    assert not [f for f in report["findings"] if f["what"] in ("redis", "features") and f["verdict"] != "ok"]
    job = suite.silkrec("jobs", "submit", "prefill", "--user", "ann", "--watch")
    assert (job["state"], job["progress"]) == ("succeeded", {"done": 1, "total": 1, "failed": 0})
    assert_doctor_explains_a_sick_suite(suite)
    os.kill(suite.process.pid, signal.SIGTERM)
    assert suite.process.wait(STOP_S) == 0
    gone(running)
    assert not (suite.folder / "var/run/suite.json").exists()
