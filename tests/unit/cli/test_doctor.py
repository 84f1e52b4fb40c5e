"""Each bound from both sides, on what the parts are known to say."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.cli.doctor import broker, database, monitoring, redis, services, setup, traffic
from services.cli.doctor.deployment import find
from services.cli.doctor.finding import Finding
from services.cli.doctor.scrape import Figures, Samples
from services.recommender.journal.segment import SegmentWriter
from shared.contracts.manifest import IndexManifest, ModelManifest, Release
from shared.settings.roots import Settings
from shared.storage.artifacts import ArtifactStore

HERE = "http://127.0.0.1:1"
HEALTHY_CACHE = {
    "ping_ms": 0.4,
    "skew_s": 0.01,
    "maxmemory": 1000,
    "used_memory": 500,
    "maxmemory-policy": "volatile-lru",
}


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def verdicts(findings: Iterator[Finding]) -> dict[str, str]:
    found = list(findings)
    for finding in found:
        assert (finding.mend == "") == (finding.verdict == "ok"), f"what is not well says what to do: {finding}"
    return {finding.what: finding.verdict for finding in found}


def pace(in_time: int, late: int) -> str:
    asked = in_time + late
    route = 'route="/v1/recommend"'
    name = "silkrec_recommender_http_request_duration_seconds"
    return f"""# TYPE {name} histogram
{name}_bucket{{{route},le="0.05"}} {in_time}
{name}_bucket{{{route},le="0.068"}} {in_time}
{name}_bucket{{{route},le="0.1"}} {asked}
{name}_bucket{{{route},le="+Inf"}} {asked}
{name}_count{{{route}}} {asked}
{name}_sum{{{route}}} 1
"""


def rungs(model: int, popular: int) -> str:
    return f"""# TYPE silkrec_recommender_slates_total counter
silkrec_recommender_slates_total{{route="/v1/recommend",scene="home",rung="model"}} {model}
silkrec_recommender_slates_total{{route="/v1/recommend",scene="home",rung="popular"}} {popular}
# TYPE silkrec_recommender_degraded_stages_total counter
silkrec_recommender_degraded_stages_total{{stage="rank",cause="unavailable",fallback="popular"}} {popular}
# TYPE silkrec_recommender_release_has_model gauge
silkrec_recommender_release_has_model 1
"""


@pytest.mark.parametrize(
    ("in_time", "late", "expected"), [(10, 9, "ok"), (10000, 5, "ok"), (1000, 5, "warn"), (900, 100, "fail")]
)
def test_pace_is_judged_by_the_error_budget_once_there_is_enough(in_time: int, late: int, expected: str) -> None:
    figures = Figures(samples(pace(in_time, late)))
    assert verdicts(traffic.recommender(figures, Settings(), HERE))["pace"] == expected


def test_what_happens_now_counts_and_not_what_was_hours_ago() -> None:
    before = samples(pace(0, 1000))
    now = samples(pace(500, 1000))
    found = {finding.what: finding for finding in traffic.recommender(Figures(now, before), Settings(), HERE)}
    assert found["pace"].verdict == "ok"
    assert "just now" in found["pace"].found
    assert verdicts(traffic.recommender(Figures(now, now), Settings(), HERE))["pace"] == "fail", "nothing just now"


@pytest.mark.parametrize(("model", "popular", "expected"), [(100, 2, "ok"), (90, 10, "warn"), (20, 80, "fail")])
def test_the_share_below_the_models_rung_says_which_stage_gave_up(model: int, popular: int, expected: str) -> None:
    found = {f.what: f for f in traffic.recommender(Figures(samples(rungs(model, popular))), Settings(), HERE)}
    assert found["rungs"].verdict == expected
    assert ("rank: unavailable" in found["rungs"].found) == (expected != "ok")


def test_lost_slates_and_a_journal_that_grows_are_said() -> None:
    text = """# TYPE silkrec_recommender_journal_slates_lost_total counter
silkrec_recommender_journal_slates_lost_total{cause="full"} 3
# TYPE silkrec_recommender_journal_slates_waiting gauge
silkrec_recommender_journal_slates_waiting 99000
"""
    told = verdicts(traffic.recommender(Figures(samples(text)), Settings(), HERE))
    assert (told["lost slates"], told["journal"]) == ("warn", "fail")


def test_a_journal_segment_that_nobody_can_read_is_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    folder = settings.state / "journal" / "recommender-1"
    folder.mkdir(parents=True)
    SegmentWriter(folder / "0000000001.segment").close()
    assert verdicts(setup.journal(settings)) == {}
    (folder / "0000000002.segment").write_bytes(b"SRJRNL02" + bytes(8))
    (folder / "0000000003.segment").write_bytes(b"SRJRNL02" + bytes(8))
    assert verdicts(setup.journal(settings)) == {"journal files": "warn"}
    (finding,) = setup.journal(settings)
    assert finding.found.startswith("recommender-1/0000000002.segment: ")
    assert finding.found.endswith("and 1 more")


def engine(scored: int, overloaded: int, batch_le: str) -> str:
    return f"""# TYPE silkrec_inference_requests_total counter
silkrec_inference_requests_total{{outcome="scored"}} {scored}
silkrec_inference_requests_total{{outcome="overloaded"}} {overloaded}
# TYPE silkrec_inference_batch_duration_seconds histogram
silkrec_inference_batch_duration_seconds_bucket{{le="{batch_le}"}} 100
silkrec_inference_batch_duration_seconds_bucket{{le="+Inf"}} 100
# TYPE silkrec_inference_queue_duration_seconds histogram
silkrec_inference_queue_duration_seconds_bucket{{le="0.005"}} 100
silkrec_inference_queue_duration_seconds_bucket{{le="+Inf"}} 100
# TYPE silkrec_inference_engine_alive gauge
silkrec_inference_engine_alive 1
# TYPE silkrec_inference_max_batch_requests gauge
silkrec_inference_max_batch_requests {128 if overloaded == 0 else 16}
"""


def test_refusals_and_the_pace_of_the_engine_are_held_against_the_deadline() -> None:
    well = verdicts(traffic.inference(Figures(samples(engine(100, 0, "0.01"))), Settings(), HERE))
    assert well == {"engine": "ok", "engine pace": "ok"}
    sick = verdicts(traffic.inference(Figures(samples(engine(100, 100, "0.25"))), Settings(), HERE))
    assert sick == {"engine": "fail", "engine pace": "fail", "batch size": "warn"}
    jobs_alone = engine(100, 0, "0.25").replace("_queue_duration_seconds", "_something_else")
    assert verdicts(traffic.inference(Figures(samples(jobs_alone)), Settings(), HERE)) == {"engine": "ok"}


def test_a_job_that_makes_no_progress_is_said() -> None:
    text = """# TYPE silkrec_jobs_running_jobs gauge
silkrec_jobs_running_jobs{job_type="prefill"} 1
# TYPE silkrec_jobs_last_progress_timestamp_seconds gauge
silkrec_jobs_last_progress_timestamp_seconds{job_type="prefill"} 1000
"""
    for now_s, expected in ((1100.0, "ok"), (1900.0, "warn"), (3000.0, "fail")):
        assert verdicts(traffic.jobs(Figures(samples(text)), now_s, HERE)) == {"job progress": expected}


def test_refused_events_fail_while_it_happens() -> None:
    text = "# TYPE silkrec_features_events_refused_total counter\nsilkrec_features_events_refused_total 7\n"
    now = samples(text)
    assert verdicts(traffic.features(Figures(now, now), HERE))["events"] == "ok"
    key = next(iter(now))
    assert verdicts(traffic.features(Figures(now, {key: 1.0}), HERE))["events"] == "fail"


def test_quantiles_are_the_bucket_that_holds_them_and_none_without_observations() -> None:
    figures = Figures(samples(pace(990, 10)))
    name = "silkrec_recommender_http_request_duration_seconds"
    assert (figures.quantile(name, 0.5), figures.quantile(name, 0.999)) == (0.05, 0.1)
    assert math.isnan(figures.quantile("absent", 0.5))


@pytest.mark.parametrize(
    ("told", "what", "expected"),
    [
        ({}, "redis", "ok"),
        ({"ping_ms": 8.0}, "redis", "warn"),
        ({"ping_ms": 25.0}, "redis", "fail"),
        ({}, "redis memory", "ok"),
        ({"evicted_keys": 5}, "redis memory", "warn"),
        ({"maxmemory": 0}, "redis memory", "warn"),
        ({"maxmemory-policy": "noeviction"}, "redis memory", "warn"),
        ({"maxmemory-policy": "noeviction", "used_memory": 990}, "redis memory", "fail"),
        ({"skew_s": -3.0}, "redis clock", "warn"),
    ],
)  # fmt: skip
def test_a_cache_that_refuses_or_forgets_is_said(told: dict[str, object], what: str, expected: str) -> None:
    assert verdicts(redis.cache({**HEALTHY_CACHE, **told}, 20, HERE))[what] == expected


def test_a_server_that_takes_no_writes_fails_though_it_answers_pings() -> None:
    for told in ({"rdb_last_bgsave_status": "err"}, {"aof_last_write_status": "err"}, {"role": "slave"}):
        assert verdicts(redis.server_health("redis", told, HERE)) == {"redis": "fail"}
    assert verdicts(redis.server_health("redis", {"role": "master", "rdb_last_bgsave_status": "ok"}, HERE)) == {}
    evicting = {"maxmemory": 1, "maxmemory-policy": "allkeys-lru", "aof_enabled": 1}
    assert verdicts(redis.as_broker(evicting, HERE)) == {"broker memory": "fail"}


def test_a_queue_that_nobody_takes_from_is_said() -> None:
    assert broker.queue(0, 1, 32, HERE).verdict == "ok"
    assert broker.queue(3, 0, 32, HERE).verdict == "warn"
    assert broker.queue(32, None, 32, HERE).verdict == "warn"


def test_a_critical_alert_fails_and_names_its_page() -> None:
    alerts = [
        {"state": "firing", "labels": {"alertname": "SilkrecEngineDown", "severity": "critical"}, "annotations": {}},
        {"state": "firing", "labels": {"alertname": "SilkrecBackupOld", "severity": "warning"}},
        {"state": "pending", "labels": {"alertname": "SilkrecDegraded", "severity": "warning"}},
    ]
    found = list(monitoring.firing(alerts, HERE))
    assert [(f.what, f.verdict) for f in found] == [
        ("alert SilkrecEngineDown", "fail"), ("alert SilkrecBackupOld", "warn"),
    ]  # fmt: skip
    assert all(Path(finding.mend).is_file() for finding in found)
    down = [{"health": "down", "labels": {"service": "jobs"}, "lastError": "refused", "scrapeUrl": HERE}]
    assert [finding.verdict for finding in monitoring.down(down, HERE)] == ["warn"]


def test_what_ready_says_is_weighed() -> None:
    def weighed(told: dict[str, str], *, ready: bool) -> str:
        return services.readiness("recommender", HERE, told, ready=ready).verdict

    assert weighed({"redis": "ok", "release": "none promoted yet"}, ready=True) == "ok"
    assert weighed({"redis": "does not answer"}, ready=True) == "warn"
    assert weighed({"database": "does not answer"}, ready=False) == "fail"
    assert weighed({"task sweeper": "given up; restart the process"}, ready=True) == "fail"


@pytest.fixture
def mute() -> Iterator[str]:
    """Listens, and answers nobody: what a stopped process looks like."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_service_that_hangs_is_told_from_one_that_is_away(mute: str) -> None:
    with httpx.Client(trust_env=False, timeout=0.1) as http:
        (hangs,) = services.service(http, "features", mute, expected=True)
        assert (hangs.verdict, "hangs" in hangs.found) == ("fail", True)
        for expected, verdict in ((True, "fail"), (False, "warn")):
            (away,) = services.service(http, "features", HERE, expected=expected)
            assert (away.verdict, away.found) == (verdict, "nothing answers")
        assert services.nginx(http, HERE).verdict == "fail"


@pytest.mark.parametrize(("free", "expected"), [(1 << 29, "fail"), (2 << 30, "warn"), (50 << 30, "ok")])
def test_disk_and_open_files_have_bounds(free: int, expected: str) -> None:
    assert setup.disk("state", "/", free).verdict == expected


def test_a_process_near_its_limit_of_open_files_fails() -> None:
    assert [setup.files("here", *case).verdict for case in ((65536, 10), (1024, 10), (65536, 60000))] == [
        "ok", "warn", "fail",
    ]  # fmt: skip


def test_clocks_pings_and_backups_have_bounds() -> None:
    assert [database.skew("clock", seconds, HERE).verdict for seconds in (0.2, -5.0, 90.0)] == ["ok", "warn", "fail"]
    assert [database.ping(ms, "schema", HERE).verdict for ms in (1.0, 15.0, 60.0)] == ["ok", "warn", "fail"]
    ages = (None, 3600.0, 30 * 3600.0, 10 * 86400.0)
    assert [database.backup(age).verdict for age in ages] == ["warn", "ok", "warn", "fail"]


def publish(folder: Path, made_for: str, age: timedelta) -> Settings:
    settings = Settings(state_dir=folder)
    store = ArtifactStore(settings.artifacts_dir())
    common = {"created_at": datetime.now(UTC) - age, "catalogue_version": 1}
    model = ModelManifest(
        version="m-1", architecture={}, actions=(), vocabulary=1, vector_dim=1, feature_schema="x", **common
    )
    index = IndexManifest(version="i-1", model_version=made_for, spaces={}, **common)
    with store.staging(ModelManifest, "m-1") as staged:
        store.publish(staged, model)
    with store.staging(IndexManifest, "i-1") as staged:
        store.publish(staged, index)
    return settings


@pytest.mark.parametrize(
    ("made_for", "days", "expected"),
    [
        ("m-1", 1, {"model": "ok", "index": "ok", "index age": "ok"}),
        ("m-1", 4, {"model": "ok", "index": "ok", "index age": "warn"}),
        ("m-0", 1, {"model": "ok", "index": "ok", "index of the model": "fail", "index age": "ok"}),
    ],
)
def test_an_index_of_another_model_fails_and_an_old_one_is_said(
    tmp_path: Path, made_for: str, days: int, expected: dict[str, str]
) -> None:
    settings = publish(tmp_path, made_for, timedelta(days=days))
    release = Release(release="r-1", model_version="m-1", index_version="i-1")
    assert verdicts(database.artifacts(settings, release, datetime.now(UTC).timestamp())) == expected
    missing = Release(release="r-2", model_version="m-9", index_version="i-1")
    assert verdicts(database.artifacts(settings, missing, 0.0))["model"] == "fail"


def test_without_a_supervisor_parts_are_where_the_settings_say(tmp_path: Path) -> None:
    found = find(Settings(state_dir=tmp_path), nginx="http://n")
    assert (found.supervised, found.nginx, found.prometheus) == (False, "http://n", "")
    assert set(found.services) == {"recommender", "features", "inference", "jobs"}
