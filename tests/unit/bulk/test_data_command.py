"""`silkrec data import` as its user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from shared.errors import ClientError

Call = Callable[..., Result]


@pytest.fixture
def silkrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`silkrec(…)` in a folder of its own, on the embedded database."""
    (tmp_path / "silkrec.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["data", "import", *arguments])

    return call


def test_a_file_with_the_right_names_needs_no_options(silkrec: Call, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id,event_type,occurred_at,colour\nu,i,click,2026-01-01,red\n")
    shown = silkrec("e.csv")
    assert shown.exit_code == 0, shown.output
    assert "1 events stored, 0 known already, 0 left out" in shown.stdout
    assert "not used: colour" in shown.stdout
    assert "was imported before, all 1 rows of it" in silkrec("e.csv").stdout
    assert json.loads(silkrec("e.csv", "--restart", "--json").stdout)["duplicates"] == 1


def test_a_dry_run_makes_no_database(silkrec: Call, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(
        "user_id,item_id,event_type,occurred_at\nu,i,click,2026-01-01\nu,i,wink,2026-01-01\n"
    )
    shown = silkrec("e.csv", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "1 events would be stored" in shown.stdout
    assert "row 2: event_type 'wink' is not declared" in shown.stdout
    assert not (tmp_path / "var" / "silkrec.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "(columns found: uid, film, stars, when) Say which: --map user_id=uid"),
        (["--map", "user_id=uid,item_id=filn"], "there is no column 'filn'; did you mean item_id=film?"),
        (["--map", "user=uid"], "events have no field 'user'"),
        (["--map", "user_id"], "--map 'user_id': write NAME=VALUE"),
        (["--map", "user_id=uid,item_id=film,occurred_at=when"], "or --const event_type=rating"),
        (["--map", "user_id=uid", "--map", "user_id=film"], "--map says user_id=uid and user_id=film"),
        (["--map", "user_id=uid", "--const", "user_id=x"], "user_id is given by --map and by --const"),
        (
            ["--map", "user_id=uid,item_id=film,occurred_at=when", "--const", "event_type=ratign"],
            "event type 'ratign' is not declared in silkrec.yaml; did you mean rating?",
        ),
        (["--split", "tags"], "--split 'tags': write FIELD=SEPARATOR"),
        (["--id-prefix", "a/b"], "--id-prefix 'a/b': at most 64 characters of an id"),
        (["--rejects", "e.csv", "--map", "user_id=uid,item_id=film,occurred_at=when", "--const", "event_type=click"],
         "--rejects e.csv is the file to be imported"),
        (["--rejects", "no/such/folder", "--map", "user_id=uid,item_id=film,occurred_at=when",
          "--const", "event_type=click"], "--rejects no/such/folder cannot be written: No such file or directory"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line_with_the_option_that_mends_it(
    silkrec: Call, tmp_path: Path, arguments: list[str], message: str
) -> None:
    content = "uid,film,stars,when\nu,i,3,2026-01-01\n"
    (tmp_path / "e.csv").write_text(content)
    failed = silkrec("e.csv", *arguments)
    assert isinstance(failed.exception, ClientError)
    assert message in failed.exception.detail
    assert "\n" not in failed.exception.detail
    assert (tmp_path / "e.csv").read_text() == content


def test_what_a_file_calls_its_event_types_can_be_told(silkrec: Call, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(
        "user_id,item_id,event_type,occurred_at\nu,i,addToCart,2026-01-01\nu,i,click,2026-01-01\n"
    )
    summary = json.loads(silkrec("e.csv", "--event-type", "addToCart=add_to_cart", "--json").stdout)
    assert (summary["accepted"], summary["rejected"]) == (2, 0)
