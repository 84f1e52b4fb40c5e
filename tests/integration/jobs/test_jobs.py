"""Jobs from submission to output, on both databases and a real Redis."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from sqlalchemy import delete, update

from services.recommender.components.stored import batch_slate_key, unpack_batch_slate
from services.recommender.jobs.leases import LeaseLost
from services.recommender.jobs.outputs import parquet
from services.recommender.jobs.outputs.made import checksum_of
from services.recommender.jobs.store import chunks
from services.recommender.jobs.store.chunks import Done, Lease
from services.recommender.jobs.store.jobs import JobState, add_up
from services.recommender.jobs.work import SlateAsk, UserSlate
from services.recommender.jobs.working import folder_of, turn
from shared.errors import Conflict, InferenceUnavailable, TooManyRequests, ValidationFailed
from shared.storage.tables import batch_slates, job_chunks, job_events, jobs, user_state
from tests.integration.jobs.conftest import MakeWorld
from tests.integration.jobs.world import RELEASE, World, lines, slate_of

pytestmark = pytest.mark.integration


def test_every_user_of_a_segment_has_one_row_with_its_release_and_the_numbers_agree(jobs_world: World) -> None:
    jobs_world.put_users(60)
    job_id = jobs_world.submit(segment='user.country = "DE"', outputs=["database"])
    jobs_world.work()
    seen = jobs_world.seen(job_id)
    assert seen.job.state is JobState.SUCCEEDED
    assert (seen.progress.done, seen.progress.total, seen.progress.failed) == (30, 30, 0)
    rows = jobs_world.rows(batch_slates, job_id)
    assert sorted(row.user_key for row in rows) == [f"u:user-{number:05d}" for number in range(1, 60, 2)]
    assert {(row.release, row.model_version, row.index_version) for row in rows} == {("r-1", "m-1", "i-1")}
    slate = unpack_batch_slate(rows[0].slate)
    assert slate is not None
    assert slate.item_index.tolist() == [1, 2, 3]
    written = [(row.user_key, unpack_batch_slate(row.slate)) for row in rows]
    sums = [checksum_of(key, one.item_index.astype("<i4").tobytes()) for key, one in written if one is not None]
    assert seen.job.checksum == add_up([f"{one:064x}" for one in sums])
    assert all(row.asks is None for row in jobs_world.rows(job_chunks, job_id))


def test_the_deleted_and_the_merged_are_no_users_of_a_segment(jobs_world: World) -> None:
    keys = jobs_world.put_users(4)
    with jobs_world.database.write() as connection:
        connection.execute(update(user_state).where(user_state.c.user_key == keys[0]).values(deleted_at_us=5))
        connection.execute(update(user_state).where(user_state.c.user_key == keys[1]).values(merged_into=keys[3]))
    job_id = jobs_world.submit(segment="*", outputs=["database"])
    jobs_world.work()
    assert sorted(row.user_key for row in jobs_world.rows(batch_slates, job_id)) == keys[2:]


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_is_over_names_nobody_and_still_answers_to_its_key(make_world: MakeWorld, state: JobState) -> None:
    world = make_world(**{"jobs.max_attempts": 1})
    world.maker.error = ValueError("a bad day") if state is JobState.FAILED else None
    job_id = world.submit("prefill", user_ids=["ann", "bob"], count=3, key="k-1")
    assert world.seen(job_id).job.spec["params"]["user_ids"] == ["ann", "bob"]
    if state is JobState.CANCELLED:
        world.desk.cancel(job_id)
    world.work()
    job = world.seen(job_id).job
    assert job.state is state
    assert job.spec["params"] == {"count": 3}
    assert all(row.asks is None for row in world.rows(job_chunks, job_id))
    assert world.submit("prefill", user_ids=["ann", "bob"], count=3, key="k-1") == job_id


def test_a_slate_in_redis_is_found_under_the_key_of_the_batch_rung_and_expires(jobs_world: World) -> None:
    job_id = jobs_world.submit("prefill", user_ids=["ann"])
    jobs_world.work()
    key = batch_slate_key("r-1", "home", "u:ann")
    with redis.Redis.from_url(jobs_world.settings.redis_url()) as client:
        held, ttl_s = unpack_batch_slate(client.get(key)), client.ttl(key)
    assert held is not None
    assert held.item_index.tolist() == [1, 2, 3]
    assert 0 < ttl_s <= jobs_world.settings.jobs.batch_slate_ttl_s
    assert jobs_world.rows(batch_slates, job_id) == []


def test_an_export_is_there_whole_or_not_at_all_and_names_only_committed_parts(jobs_world: World) -> None:
    job_id = jobs_world.submit("export", user_ids=[f"u{number}" for number in range(25)])
    folder = folder_of(jobs_world.settings, job_id)
    while jobs_world.seen(job_id).job.state is not JobState.PUBLISHING:
        assert not (folder / "manifest.json").exists()
        assert turn(jobs_world.bench)
    stray = folder / "parts" / "chunk-00000001-99.parquet"
    stray.write_bytes(b"of a lease that was lost")
    jobs_world.work()
    table = parquet.read(folder)
    assert sorted(table.column("user_id").to_pylist()) == sorted(f"u{number}" for number in range(25))
    assert table.column("item_ids").to_pylist()[0] == ["item-1", "item-2", "item-3"]
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["rows"] == 25
    assert sum(part["rows"] for part in manifest["parts"]) == 25
    assert not stray.exists()
    output = jobs_world.seen(job_id).job.output
    assert output is not None
    assert output["manifest"] == str(folder / "manifest.json")


def test_a_part_that_is_not_what_was_committed_is_never_published(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_attempts": 1})
    job_id = world.submit("export", user_ids=["ann"])
    while world.seen(job_id).job.state is not JobState.PUBLISHING:
        assert turn(world.bench)
    folder = folder_of(world.settings, job_id)
    next((folder / "parts").iterdir()).write_bytes(b"damaged")
    world.work()
    seen = world.seen(job_id)
    assert seen.job.state is JobState.FAILED
    assert "not what its chunk committed" in str(seen.job.reason)
    assert not (folder / "manifest.json").exists()


def test_lists_are_ranked_from_jsonl_and_rows_that_name_nobody_are_counted_as_failed(
    jobs_world: World, tmp_path: Path
) -> None:
    rows = [f'{{"user_id": "u{number}", "item_ids": ["a", "b"]}}' for number in range(23)]
    rows += ['{"user_id": "u3", "item_ids": ["z"]}', '{"item_ids": ["a"]}', "no json", '{"user_id": "x"}']
    lines(tmp_path / "inbox" / "given.jsonl", rows)
    job_id = jobs_world.submit("rerank", file="given.jsonl")
    jobs_world.work()
    seen = jobs_world.seen(job_id)
    assert (seen.progress.done, seen.progress.failed, seen.progress.total) == (23, 3, 26)
    assert seen.job.state is JobState.SUCCEEDED
    assert len(jobs_world.rows(batch_slates, job_id)) == 23


def test_parquet_of_users_is_read(jobs_world: World, tmp_path: Path) -> None:
    pq.write_table(pa.table({"visitor_id": [f"v{number}" for number in range(12)]}), tmp_path / "inbox" / "who.parquet")
    job_id = jobs_world.submit(file="who.parquet", outputs=["database"])
    jobs_world.work()
    assert {row.user_key for row in jobs_world.rows(batch_slates, job_id)} == {f"v:v{number}" for number in range(12)}


def test_a_file_outside_of_the_inbox_parks_the_plan_and_says_why(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(**{"jobs.max_attempts": 1})
    lines(tmp_path / "secret.jsonl", ['{"user_id": "ann"}'])
    job_id = world.submit(file="../secret.jsonl")
    world.work()
    assert world.seen(job_id).job.state is JobState.FAILED
    assert "not below jobs.input_dir" in str(world.seen(job_id).job.reason)


def test_a_planner_that_was_killed_goes_on_where_it_had_committed(make_world: MakeWorld) -> None:
    jobs_world = make_world(**{"jobs.chunk_first_users": 500})
    ids = [f"u{number}" for number in range(5000)]
    job_id = jobs_world.submit(user_ids=[*ids, *ids[:50]], outputs=["database"])
    database, rules = jobs_world.database, jobs_world.bench.rules
    first = database.transact(lambda connection: chunks.claim(connection, "killed", rules))
    assert first is not None
    from services.recommender.jobs.planning import Planner
    from services.recommender.jobs.spec import read_stored
    from services.recommender.jobs.users import InlineUsers

    people = InlineUsers(tuple(read_stored(jobs_world.job_row(job_id).spec).inline()))
    Planner(database, first, people, rules, turn_s=0.0).plan(None)  # one page, then the process is gone
    planned = sum(row.users for row in jobs_world.rows(job_chunks, job_id))
    assert 0 < planned < 5000
    jobs_world.let_pass(60)
    jobs_world.work(turns=2000)
    assert jobs_world.seen(job_id).progress.done == 5000
    assert len(jobs_world.rows(batch_slates, job_id)) == 5000
    with pytest.raises(LeaseLost):
        Planner(database, first, people, rules, turn_s=0.0).plan(None)


def test_a_zombie_cannot_commit_what_another_worker_has_leased(jobs_world: World) -> None:
    job_id = jobs_world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(jobs_world.bench)  # the plan
    database, rules = jobs_world.database, jobs_world.bench.rules
    zombie = database.transact(lambda connection: chunks.claim(connection, "zombie", rules))
    assert zombie is not None
    assert database.transact(lambda connection: chunks.claim(connection, "other", rules)) is None
    jobs_world.let_pass(rules.lease_us / 1e6 + 1)
    jobs_world.work()
    late = Done([], 1, (), "0" * 64, 1.0)
    with pytest.raises(LeaseLost):
        database.transact(lambda connection: chunks.finish(connection, zombie, late))
    with pytest.raises(LeaseLost):
        database.transact(lambda connection: chunks.renew(connection, zombie, rules))
    assert len(jobs_world.rows(batch_slates, job_id)) == 1
    assert jobs_world.chunk(job_id, 1).token == zombie.token + 1


def test_of_many_workers_at_once_each_chunk_goes_to_one(jobs_world: World) -> None:
    jobs_world.submit(user_ids=[f"u{number}" for number in range(200)], outputs=["database"])
    assert turn(jobs_world.bench)
    database, rules = jobs_world.database, jobs_world.bench.rules
    taken: list[Lease] = []

    def worker() -> None:
        while (lease := database.transact(lambda connection: chunks.claim(connection, "one", rules))) is not None:
            taken.append(lease)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(lease.chunk for lease in taken) == Counter(range(1, 21))


def test_a_dependency_that_is_away_costs_a_chunk_no_attempt(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_attempts": 1})
    job_id = world.submit(user_ids=["ann"], outputs=["database"])
    world.maker.error = InferenceUnavailable("away")
    for _ in range(5):
        world.work()
        world.let_pass(60)
    assert world.chunk(job_id, 1).attempts == 0
    assert "inference_unavailable" in world.chunk(job_id, 1).reason
    world.maker.error = None
    world.work()
    assert world.seen(job_id).job.state is JobState.SUCCEEDED


def test_one_poison_user_is_parked_alone_with_the_reason_and_everybody_else_is_served(jobs_world: World) -> None:
    def make(ask: SlateAsk) -> UserSlate:
        if ask.user_key == "u:u7":
            raise RuntimeError("division by zero in somebody's history")
        return slate_of(ask)

    jobs_world.maker.make = make
    job_id = jobs_world.submit(user_ids=[f"u{number}" for number in range(40)], outputs=["database"])
    while jobs_world.seen(job_id).job.active:
        jobs_world.work()
        jobs_world.let_pass(100)
    seen = jobs_world.seen(job_id)
    assert (seen.progress.done, seen.progress.failed) == (39, 1)
    assert seen.job.state is JobState.FAILED
    assert [(users, reason) for _chunk, users, reason in seen.parked] == [
        (1, "RuntimeError: division by zero in somebody's history")
    ]


def test_a_job_whose_spec_cannot_be_read_fails_with_that_reason(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_attempts": 1})
    job_id = world.submit(user_ids=["ann"], outputs=["database"])
    with world.database.write() as connection:
        connection.execute(update(jobs).values(spec={"format": 1, "type": "nothing"}))
    world.work()
    job = world.job_row(job_id)
    assert job.state == "failed"
    assert "/type" in job.reason


def test_an_error_of_one_user_is_recorded_and_fails_nobody_else(jobs_world: World) -> None:
    def make(ask: SlateAsk) -> UserSlate:
        good = slate_of(ask)
        if ask.user_key != "u:b":
            return good
        return UserSlate("u:b", (), good.item_index[:0], good.scores[:0], error="no item of the list is known")

    jobs_world.maker.make = make
    job_id = jobs_world.submit(user_ids=["a", "b", "c"], outputs=["database"])
    jobs_world.work()
    seen = jobs_world.seen(job_id)
    assert (seen.job.state, seen.progress.done, seen.progress.failed) == (JobState.SUCCEEDED, 2, 1)
    assert list(seen.failures) == [("u:b", "no item of the list is known")]


def test_a_fault_that_meets_every_chunk_fails_the_job_after_so_many_parked_ones(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_attempts": 1, "jobs.max_parked_chunks": 3})
    world.maker.error = RuntimeError("broken")
    job_id = world.submit(user_ids=[f"u{number}" for number in range(400)], outputs=["database"])
    world.work()
    seen = world.seen(job_id)
    assert seen.job.state is JobState.FAILED
    assert len(seen.parked) == 3
    assert {row.state for row in world.rows(job_chunks, job_id)} == {"done", "parked", "cancelled"}


def test_cancelling_stops_the_chunk_under_way_and_nothing_of_it_is_written(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.lease_s": 0.3})
    job_id = world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(world.bench)
    world.maker.hang = True
    worker = threading.Thread(target=turn, args=(world.bench,))
    worker.start()
    assert world.maker.asked.wait(10)
    assert world.desk.cancel(job_id).job.state is JobState.CANCELLED
    worker.join(10)
    assert not worker.is_alive()
    assert world.rows(batch_slates, job_id) == []
    assert world.desk.cancel(job_id).job.state is JobState.CANCELLED
    assert not turn(world.bench)


def test_a_chunk_beyond_the_soft_limit_is_stopped_and_comes_again(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.soft_limit_s": 0.2, "jobs.hard_limit_s": 5.0, "jobs.chunk_target_s": 0.1})
    job_id = world.submit(user_ids=["ann", "ben"], outputs=["database"])
    assert turn(world.bench)
    world.maker.hang = True
    assert turn(world.bench)
    assert "soft_limit" in world.chunk(job_id, 1).reason
    world.maker.hang = False
    world.let_pass(60)
    world.work()
    assert world.seen(job_id).progress.done == 2


def test_the_same_key_is_the_same_job_and_another_body_a_conflict(jobs_world: World) -> None:
    first = jobs_world.submit(key="nightly", user_ids=["ann"])
    assert jobs_world.submit(key="nightly", user_ids=["ann"]) == first
    with pytest.raises(Conflict):
        jobs_world.submit(key="nightly", user_ids=["ben"])
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(jobs_world.submit(key="at once", user_ids=["ann"])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_more_jobs_than_allowed_are_refused_until_one_ends(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_active_jobs": 1})
    job_id = world.submit(user_ids=["ann"])
    with pytest.raises(TooManyRequests):
        world.submit(user_ids=["ben"])
    world.desk.cancel(job_id)
    world.submit(user_ids=["ben"])


def test_a_chunk_is_cut_to_what_its_target_allows_once_chunks_were_measured(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.chunk_first_users": 100, "jobs.chunk_max_users": 100})
    job_id = world.submit(user_ids=[f"u{number}" for number in range(300)], outputs=["database"])
    assert turn(world.bench)
    assert turn(world.bench)
    with world.database.write() as connection:  # as if the first had taken 40 s: 2.5 users a second
        connection.execute(update(job_chunks).where(job_chunks.c.seconds.is_not(None)).values(seconds=40.0))
    assert turn(world.bench)
    assert len(world.maker.chunks[-1]) == 10
    world.work()
    assert world.seen(job_id).progress.done == 300


def test_what_was_submitted_is_refused_before_it_is_a_job(jobs_world: World) -> None:
    refused: list[dict[str, Any]] = [{}, {"user_ids": ["a"], "segment": "*"}, {"segment": "user.nothing = 1"}]
    for params in [*refused, {"lists": []}]:
        with pytest.raises(ValidationFailed):
            jobs_world.submit(**params)
    with pytest.raises(ValidationFailed):
        jobs_world.submit("rerank", user_ids=["ann"])
    assert jobs_world.desk.page(limit=5, state=None, after=None) == []


def test_a_release_that_changes_under_a_chunk_makes_it_again(jobs_world: World) -> None:
    from shared.contracts.manifest import Release

    newer = Release(release="r-2", model_version="m-2", index_version="i-2")
    job_id = jobs_world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(jobs_world.bench)

    def promote() -> None:
        jobs_world.maker.release = newer

    jobs_world.maker.meanwhile = promote
    assert turn(jobs_world.bench)
    assert jobs_world.rows(batch_slates, job_id) == []
    jobs_world.let_pass(10)
    jobs_world.work()
    assert [row.release for row in jobs_world.rows(batch_slates, job_id)] == ["r-2"]
    assert RELEASE.release == "r-1"


def test_finished_jobs_go_with_all_that_is_theirs_and_others_stay(jobs_world: World) -> None:
    import asyncio

    from services.recommender.jobs.metrics import JobMetrics
    from services.recommender.jobs.purge import JobPurge
    from shared.observability.metrics import Metrics

    old = jobs_world.submit(user_ids=["ann"], outputs=["database", "parquet"])
    jobs_world.work()
    young = jobs_world.submit(user_ids=["ben"], outputs=["database"])
    jobs_world.work()
    with jobs_world.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == old).values(finished_at_us=1))
    folder = folder_of(jobs_world.settings, old)
    assert folder.is_dir()
    purge = JobPurge(jobs_world.database, folder.parent, 14, JobMetrics(Metrics("jobs")))
    assert asyncio.run(purge.purge_once()) == 1
    assert not folder.exists()
    for table in (jobs, job_chunks, batch_slates, job_events):
        assert jobs_world.rows(table, old) == []
    assert jobs_world.rows(batch_slates, young) != []
    with jobs_world.database.write() as connection:
        connection.execute(delete(jobs))
