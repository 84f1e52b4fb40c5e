"""Exposures and experiment slates through the journal: once, the earliest, and nothing lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select, update

from services.recommender.journal import Journal, ServedSlate, folders
from services.recommender.journal.database import put_slates
from services.recommender.journal.record import _FIELDS, decode, encode
from services.recommender.journal.segment import UnknownFormat
from services.recommender.metrics import JournalMetrics
from shared.observability.metrics import Metrics
from shared.storage.database import Database
from shared.storage.tables import experiment_slates, exposures, recommendations, user_state
from tests.unit.recommender.slates import SERVED_AT_US, slate

pytestmark = pytest.mark.integration


def met(variant: str = "diverse", experiment: str = "mmr", **changes: Any) -> dict[str, Any]:
    row = {"experiment": experiment, "phase": 0, "unit": "u:ann", "variant": variant, "segment": "", "simulated": False}
    return {**row, **changes}


def served(recommendation_id: str, *rows: dict[str, Any], **changes: Any) -> ServedSlate:
    return slate(recommendation_id, **{"experiments": rows, "measures": {"ild": 0.25, "novelty": 7.5}, **changes})


def put(database: Database, *slates: ServedSlate) -> None:
    database.transact(lambda connection: put_slates(connection, slates))


def rows(database: Database, table: Any) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key)))


def test_a_unit_is_exposed_once_and_since_its_earliest_slate_in_any_order(database: Database) -> None:
    for order in itertools.permutations(range(3)):
        for place in order:
            at_us = SERVED_AT_US + place * 86_400_000_000
            put(database, served(f"rec-{place}", met(segment=f"s{place}"), served_at_us=at_us))
        (row,) = rows(database, exposures)
        assert (row.first_at_us, row.segment) == (SERVED_AT_US, "s0")
        assert row.first_day == SERVED_AT_US // 86_400_000_000
        assert len(rows(database, experiment_slates)) == 3
        with database.write() as connection:
            connection.execute(exposures.delete())


def test_within_one_batch_too(database: Database) -> None:
    later = served("rec-2", met(segment="late"), served_at_us=SERVED_AT_US + 5)
    put(database, later, served("rec-1", met(segment="early")), later)
    (row,) = rows(database, exposures)
    assert (row.first_at_us, row.segment) == (SERVED_AT_US, "early")


def test_a_unit_of_two_variants_is_kept_as_two_rows_for_the_analysis_to_find(database: Database) -> None:
    put(database, served("rec-1", met("control")), served("rec-2", met("diverse")))
    assert [row.variant for row in rows(database, exposures)] == ["control", "diverse"]


def test_each_experiment_of_a_slate_has_its_own_row_with_what_the_slate_was_like(database: Database) -> None:
    put(database, served("rec-1", met(), met("on", "rules", phase=2)))
    first, second = rows(database, experiment_slates)
    assert (first.experiment, first.variant, first.phase) == ("mmr", "diverse", 0)
    assert (second.experiment, second.variant, second.phase) == ("rules", "on", 2)
    assert (first.took_us, first.items, first.rung) == (21_500, 3, "model")
    assert (first.degraded, first.failed) == (True, False)
    assert (first.ild, first.novelty) == (0.25, 7.5)


def test_a_failed_request_answers_for_its_variant_but_is_no_exposure(database: Database) -> None:
    nothing: list[int] = []
    columns = dict.fromkeys(("item_index", "score", "propensity", "source_bits"), nothing)
    put(database, served("rec-1", met(), failed=True, measures={}, **columns))
    (row,) = rows(database, experiment_slates)
    assert (row.failed, row.items, row.ild) == (True, 0, None)
    assert rows(database, exposures) == []
    assert rows(database, recommendations) == []


def test_a_deleted_user_is_exposed_to_nothing(database: Database) -> None:
    with database.write() as connection:
        connection.execute(user_state.insert().values(user_key="u:ann", revision=1, deleted_at_us=SERVED_AT_US))
    put(database, served("rec-1", met()))
    assert rows(database, exposures) == rows(database, experiment_slates) == []
    with database.write() as connection:
        connection.execute(update(user_state).values(deleted_at_us=None))


def test_a_record_of_the_release_before_is_still_read() -> None:
    one = served("rec-1", met())
    older = orjson.loads(encode(one))
    older = [1, *older[1 : 1 + _FIELDS.index("experiments")]]
    found = decode(orjson.dumps(older))
    assert (found.recommendation_id, tuple(found.experiments), found.failed) == ("rec-1", (), False)
    with pytest.raises(UnknownFormat):
        decode(orjson.dumps([3, *older[1:]]))


_WRITER = """
import asyncio, sys
from pathlib import Path
from tests.integration.recommender.test_exposures import journal_until_killed
asyncio.run(journal_until_killed(Path(sys.argv[1])))
"""


async def journal_until_killed(state: Path) -> None:
    from shared.settings.roots import DatabaseSettings

    ours = _journal(state, Database(f"sqlite:///{state / 'unused.db'}", DatabaseSettings()))
    for number in itertools.count():
        assert await ours.append(served(f"rec-{number}", met(unit=f"u:{number}")), timeout_s=30)
        print(number, flush=True)


def _journal(state: Path, database: Database) -> Journal:
    return Journal(
        state=state, process="test", database=database, metrics=JournalMetrics(Metrics("test")), max_slates=1_000_000
    )


def test_kill_9_loses_no_exposure_of_an_answer_that_left(database: Database, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    answered = [int(next(writer.stdout)) for _ in range(300)]
    writer.kill()
    writer.wait()
    writer.stdout.close()

    async def adopt() -> None:
        ours = _journal(tmp_path, database)
        await ours.adopt_all()
        await ours.close()

    asyncio.run(adopt())
    assert folders.adopt(tmp_path / "journal") is None
    assert {row.unit for row in rows(database, exposures)} >= {f"u:{number}" for number in answered}
    assert {row.unit for row in rows(database, experiment_slates)} == {row.unit for row in rows(database, exposures)}
