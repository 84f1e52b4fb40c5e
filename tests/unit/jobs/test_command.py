from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.main import app


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silkrec.yaml").touch()
    monkeypatch.chdir(tmp_path)


def silkrec(*arguments: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, ["jobs", *arguments, "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


def test_jobs_are_submitted_listed_and_cancelled_and_a_watch_says_how_it_ended(tmp_path: Path) -> None:
    job = silkrec("submit", "slate", "--user", "ann", "--user", "ben", "--to", "database")
    assert (job["state"], job["output"]) == ("planning", {"to": ["database"]})
    assert job["actor"].startswith("command line")
    assert [one["job_id"] for one in silkrec("list")["items"]] == [job["job_id"]]
    assert silkrec("list", "--state", "failed")["items"] == []
    assert silkrec("cancel", job["job_id"])["state"] == "cancelled"
    ended = silkrec("watch", job["job_id"], status=1)
    assert (ended["state"], ended["parked"]) == ("cancelled", [])


def test_a_file_may_hold_the_body_and_a_key_makes_it_one_job(tmp_path: Path) -> None:
    body = tmp_path / "job.json"
    body.write_text('{"type": "prefill", "params": {"segment": "*", "count": 20}}')
    first = silkrec("submit", "--body", str(body), "--idempotency-key", "nightly")
    assert first["params"] == {"segment": "*", "count": 20}
    assert silkrec("submit", "--body", str(body), "--idempotency-key", "nightly")["job_id"] == first["job_id"]
