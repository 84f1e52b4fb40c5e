"""An experiment as JSON, and what is wrong with one that does not fit this installation."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from services.recommender.experiments.definitions import Status, kill_variant, next_phase
from services.recommender.experiments.registry.checks import check
from services.recommender.experiments.registry.document import dump, parse
from services.recommender.experiments.settings import SOURCES
from services.recommender.pipeline_wiring import standard_stages
from shared.errors import ValidationFailed
from shared.schema import ItemField, Scene, Schema, UserField
from shared.settings.roots import Settings
from tests.unit.experiments.written import registered, varying

SCHEMA = Schema(
    scenes={"home": Scene(weights={"click": 1.0})},
    item_fields={"brand": ItemField(type="string")},
    user_fields={"country": UserField(type="string")},
)


def faults(**changes: Any) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as caught:
        check(registered(**changes), SCHEMA)
    return {fault.pointer: fault.message for fault in caught.value.errors}


def test_a_document_is_read_as_it_was_written() -> None:
    whole = registered(
        unit="visitor",
        fallback_unit="user",
        coverage=0.4,
        seed="s",
        hash_version=1,
        namespace={"key": "home", "start": 0.25, "end": 0.5},
        forced={"ann": "diverse"},
        scenes=["home"],
        targeting='context.device = "phone"',
        segment_by="context.device",
        time_zone="Europe/Berlin",
        currency="EUR",
        plan={"primary": "revenue", "secondary": ["ctr"], "guardrails": {"latency_p95": 0.1}, "alpha": 0.01},
    )
    assert parse(orjson.loads(orjson.dumps(dump(whole))), status=Status.DRAFT) == whole


def test_a_holdout_is_read_as_it_was_written_and_its_end_is_a_time() -> None:
    rest = [{"key": "held_out", "weight": 0.1}, {"key": "rest", "weight": 0.9}]
    whole = registered(variants=rest, holdout={"namespace": "home", "ends_at": "2027-01-01T00:00:00+01:00"})
    assert parse(orjson.loads(orjson.dumps(dump(whole))), status=Status.DRAFT) == whole
    assert dump(whole)["holdout"] == {"namespace": "home", "ends_at": "2026-12-31T23:00:00Z"}
    with pytest.raises(ValidationFailed, match="RFC 3339"):
        registered(variants=rest, holdout={"ends_at": "new year"})
    assert set(faults(variants=rest, holdout={}, targeting='context.device = "phone"')) == {"/targeting"}


def test_phase_and_killed_variants_survive_the_database() -> None:
    from dataclasses import replace

    whole = registered()
    later = replace(whole, definition=kill_variant(next_phase(whole.definition, [0.2, 0.8]), "diverse"))
    again = parse(orjson.loads(orjson.dumps(dump(later))), status=Status.DRAFT)
    assert again == later
    assert again.definition.phase == 1
    assert again.definition.variants[1].killed


def test_another_format_or_field_is_refused_at_its_place() -> None:
    for change, pointer in (({"format": 2}, "/format"), ({"colour": 1}, "/colour"), ({"coverage": "all"}, "/coverage")):
        with pytest.raises(ValidationFailed) as caught:
            parse({**dump(registered()), **change}, status=Status.DRAFT)
        assert [fault.pointer for fault in caught.value.errors] == [pointer]


def test_every_fault_is_named_at_once() -> None:
    found = faults(
        scenes=["home", "basement"],
        targeting="user.shoe = 43",
        segment_by="mood",
        time_zone="Mars/Olympus",
        variants=varying(diversity=2, colour="red", model="m-2"),
    )
    assert set(found) == {
        "/scenes/1",
        "/targeting",
        "/segment_by",
        "/time_zone",
        "/variants/1/settings/diversity",
        "/variants/1/settings/colour",
        "/variants/1/settings/model",
    }
    assert "belongs to a release" in found["/variants/1/settings/model"]
    assert "there are diversity, exploration" in found["/variants/1/settings/colour"]


@pytest.mark.parametrize(
    ("settings", "pointer"),
    [
        ({"exploration": 0.6}, "/exploration"),
        ({"weights": {"click": 1, "dance": 2}}, "/weights/dance"),
        ({"weights": {}}, "/weights"),
        ({"hide_seen": 1}, "/hide_seen"),
        ({"candidates": 0}, "/candidates"),
        ({"per_source": True}, "/per_source"),
        ({"sources": ["popular", "magic"]}, "/sources/1"),
        ({"sources": "popular"}, "/sources"),
        ({"ranker": "coin"}, "/ranker"),
        ({"rules": "price <"}, "/rules"),
        ({"rules": "price < $most"}, "/rules"),
        ({"deadline_ms": 4}, "/deadline_ms"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_its_name(settings: dict[str, Any], pointer: str) -> None:
    assert set(faults(variants=varying(**settings))) == {f"/variants/1/settings{pointer}"}


def test_every_setting_of_the_pipeline_is_accepted() -> None:
    settings: dict[str, Any] = {
        "diversity": 0.5,
        "exploration": 0.1,
        "weights": {"click": 1, "purchase": 8},
        "hide_seen": False,
        "candidates": 200,
        "per_source": 100,
        "sources": list(SOURCES),
        "ranker": "retrieval",
        "rules": 'brand = "acme"',
        "deadline_ms": 50,
    }
    check(registered(variants=varying(**settings)), SCHEMA)


def test_the_sources_are_those_of_the_pipeline() -> None:
    nothing: Any = None
    stages = standard_stages(Settings(data=SCHEMA), user=nothing, inference=nothing, side_effects=())
    assert {source.name for source in stages.sources if not source.protected} == set(SOURCES)
