"""Drafts of silkrec.yaml: what is guessed, that it loads, and that the import it names fits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from services.cli.main import app
from services.features.bulk.draft import Draft, Wanted, make_draft
from shared.errors import Conflict, ValidationFailed
from shared.schema import Schema
from shared.settings.load import load_settings

RUNNER = CliRunner()


def drafted(tmp_path: Path, *files: Path, **more: Any) -> tuple[Draft, Schema]:
    draft = make_draft(Wanted(files, **more))
    path = tmp_path / "drafted.yaml"
    path.write_text(draft.text)
    return draft, load_settings(path, env={}).settings.data


def test_a_file_of_ratings_becomes_a_banded_event_type(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    lines = [f"{n % 30},{n % 40},{n % 10 / 2 + 0.5},{1_600_000_000 + n}" for n in range(500)]
    path.write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines))

    draft, schema = drafted(tmp_path, path)

    assert list(schema.event_types) == ["rating"]
    assert [band.below for band in schema.event_types["rating"].bands] == [2.75, 3.875, None]
    assert schema.scenes["home"].weights == {"rating_high": 2.0}
    assert draft.files[0].command == (
        f"silkrec data import {path} --map "
        "user_id=userId,item_id=movieId,occurred_at=timestamp,event_value=rating --const event_type=rating"
    )
    assert "all 500 rows" in draft.text
    assert "user_id: column 'userId' (guessed: by its name)" in draft.text


def test_event_types_are_enumerated_with_codes_and_names_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    kinds = ["view"] * 6 + ["addToCart", "Add To Cart", "transaction", "2"]
    lines = [f"v{n}\tp{n % 9}\t{kinds[n % 10]}\t2026-01-{n % 28 + 1:02d}T00:00:00Z" for n in range(200)]
    path.write_text("visitorid\titemid\tevent\ttime\n" + "\n".join(lines))

    draft, schema = drafted(tmp_path, path)

    assert {name: each.code for name, each in schema.event_types.items()} == {
        "view": 3, "add_to_cart": 4, "type_2": 20, "transaction": 21,
    }  # fmt: skip
    assert schema.scenes["home"].weights["transaction"] == 4.0
    columns = {"visitor_id": "visitorid", "item_id": "itemid", "occurred_at": "time", "event_type": "event"}
    assert draft.files[0].columns == columns
    assert "--event-type addToCart=add_to_cart" in draft.files[0].command
    assert "# 20 rows, in the file 'Add To Cart'; 'addToCart' too: 20 rows" in draft.text


def test_columns_are_told_by_their_content_where_names_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    dice = random.Random(1)
    lines = [
        f"{dice.choice(['click', 'purchase'])},{1_600_000_000_000 + n},{n % 50},{dice.randrange(9999)}"
        for n in range(300)
    ]
    path.write_text("what,moment,userid,thing\n" + "\n".join(lines))
    draft, _schema = drafted(tmp_path, path)
    columns = {"user_id": "userid", "occurred_at": "moment", "event_type": "what", "item_id": "thing"}
    assert draft.files[0].columns == columns
    assert "column 'moment' (guessed: its values are times)" in draft.text


def test_item_fields_get_their_types(tmp_path: Path) -> None:
    path = tmp_path / "products.parquet"
    count = 60
    table = {
        "product_id": list(range(count)),
        "name": [f"Thing {n}" for n in range(count)],
        "price": [n / 2 for n in range(count)],
        "genres": [["a", "b"]] * count,
        "brand": [f"b{n % 4}" for n in range(count)],
        "Zip": ["01234", "99999"] * (count // 2),
        "year": [1990 + n % 20 for n in range(count)],
        "flags": ["x;y", "y;z"] * (count // 2),
        "is_new": [True, False] * (count // 2),
        "launched": pa.array([1_600_000_000_000] * count, pa.timestamp("ms")),
        "vec": [[0.5, 0.25]] * count,
        "text": [f"word {n} " * 40 for n in range(count)],
        "no": [n % 2 for n in range(count)],
        "empty": pa.nulls(count, pa.string()),
        "title": [f"t{n}" for n in range(count)],
    }
    pq.write_table(pa.table(table), path)

    draft, schema = drafted(tmp_path, path)

    fields = schema.item_fields
    assert {name: each.type for name, each in fields.items()} == {
        "brand": "string", "zip": "string", "year": "number", "flags": "strings", "is_new": "boolean",
        "launched": "timestamp", "text": "string", "no": "number", "name": "string",
    }  # fmt: skip
    assert (fields["brand"].feature, fields["text"].feature, fields["text"].filterable) == (True, False, False)
    columns = draft.files[0].columns
    assert (columns["item_id"], columns["title"], columns["categories"]) == ("product_id", "title", "genres")
    assert columns["embeddings.vec"] == "vec"
    assert "--split 'flags=;'" in draft.files[0].command


def test_files_of_several_kinds_make_one_draft(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,occurred_at,event_type\nu,i,2026-01-01,click\n")
    (tmp_path / "items.csv").write_text("item_id,title,brand\ni,A,x\nj,B,x\n")
    (tmp_path / "users.csv").write_text("id,age,country,segments\nu,30,FR,vip|new\nv,31,DE,new\n")
    draft, schema = drafted(tmp_path, *(tmp_path / f"{name}.csv" for name in ("users", "items", "events")))
    assert [each.kind for each in draft.files] == ["users", "items", "events"]
    assert list(schema.event_types) == ["click"]
    assert list(schema.item_fields) == ["brand"]
    assert {name: each.type for name, each in schema.user_fields.items()} == {"age": "number", "country": "string"}


def test_content_that_looks_like_yaml_stays_content(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    hostile = ["no", "on", "null", "a: {b", "# x", "' \"", "1e3", "\u2028scenes:", "ünï"]
    path.write_text("user_id,item_id,ts,event_type\n")
    with path.open("a", encoding="utf-8") as file:
        for kind in hostile:
            quoted = kind.replace('"', '""')
            file.write(f'u,i,2026-01-01,"{quoted}"\n')
    draft, schema = drafted(tmp_path, path)
    assert set(yaml.safe_load(draft.text)) == {"scenes", "event_types"}
    assert {"no", "on", "null"} <= set(schema.event_types)


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("a,b,c", {}, "Say which: --map user_id=COLUMN,item_id=COLUMN"),
        ("a,b,c", {"mapped": {"user_id": "x"}}, "there is no such column"),
        ("item_id,user_id,c", {}, "no column looks like occurred_at (columns found: item_id, user_id, c)"),
        ("item_id,b,c", {"kind": "events"}, "Say which one it is: --map user_id=COLUMN"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(
    tmp_path: Path, header: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "f.csv"
    path.write_text(f"{header}\nx,y,z\nx,w,z\n")
    with pytest.raises(ValidationFailed) as caught:
        make_draft(Wanted([path], **options))
    assert message in caught.value.detail


def test_a_column_of_too_many_values_is_no_column_of_event_types(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    lines = [f"u,i,2026-01-01,kind{n}" for n in range(100)]
    path.write_text("user_id,item_id,ts,thing\n" + "\n".join(lines))
    with pytest.raises(ValidationFailed, match="more than 60 different values"):
        make_draft(Wanted([path], {"event_type": "thing"}))


def test_the_command_writes_a_file_once_and_never_over_another(tmp_path: Path) -> None:
    path, out = tmp_path / "events.csv", tmp_path / "silkrec.yaml"
    path.write_text("user_id,item_id,ts\nu,i,2026-01-01\n")
    done = RUNNER.invoke(app, ["schema", "infer", str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["yaml"] == out.read_text()
    assert "click" in load_settings(out, env={}).settings.data.event_types
    out.write_text("# mine\n")
    refused = RUNNER.invoke(app, ["schema", "infer", str(path), "--out", str(out)])
    assert isinstance(refused.exception, Conflict)
    assert out.read_text() == "# mine\n"
    assert RUNNER.invoke(app, ["schema", "infer", str(path), "--out", str(out), "--force"]).exit_code == 0
    assert "event_types" in out.read_text()
