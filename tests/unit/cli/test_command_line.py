"""The command as its users call it: a process, its output, its exit status."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.main import COMMANDS
from shared.settings.roots import DatabaseSettings
from shared.storage import migrate
from shared.storage.database import Database


def silkrec(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SILKREC_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(Path.cwd()), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_lists_every_command_and_loads_no_torch(tmp_path: Path) -> None:
    done = silkrec(tmp_path, "--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert name in done.stdout
    code = "import sys; from services.cli.main import app; from typer.main import get_command; get_command(app)"
    probe = f"{code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(tmp_path: Path, name: str) -> None:
    done = silkrec(tmp_path, name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_a_misspelt_variable_is_one_line_that_names_the_right_one(tmp_path: Path) -> None:
    done = silkrec(tmp_path, "config", "show", SILKREC_RECOMENDER__PORT="1")
    assert done.returncode == 2
    assert "SILKREC_RECOMMENDER__PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_show_says_where_each_value_comes_from_and_hides_secrets(tmp_path: Path) -> None:
    (tmp_path / "silkrec.yaml").write_text("features: {port: 9001}\n")
    secret = "s" * 40
    done = silkrec(
        tmp_path,
        *("config", "show", "--origin", "--json"),
        SILKREC_RECOMMENDER__PORT="9002",
        SILKREC_DATABASE__URL=f"sqlite:///{tmp_path}/x.db",
        SILKREC_REDIS__URL="redis://:hunter22@localhost/0",
        SILKREC_AUTH__USER_TOKEN_SECRET=secret,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)["settings"]}
    assert rows["features.port"] == (9001, "file silkrec.yaml")
    assert rows["recommender.port"] == (9002, "env SILKREC_RECOMMENDER__PORT")
    assert rows["inference.port"] == (8082, "default")
    assert secret not in done.stdout
    assert "hunter22" not in done.stdout


def test_the_committed_configuration_can_be_used_as_it_is(tmp_path: Path) -> None:
    done = silkrec(tmp_path, "--config", str(Path.cwd() / "silkrec.yaml"), "config", "show", "--json")
    assert done.returncode == 0, done.stderr


def test_a_service_is_not_bound_to_others_without_keys(tmp_path: Path) -> None:
    done = silkrec(tmp_path, "serve", "features", SILKREC_FEATURES__HOST="0.0.0.0", SILKREC_FEATURES__PORT="0")
    assert done.returncode == 2
    assert "silkrec keys create" in done.stderr


def test_a_taken_port_is_one_line_that_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = silkrec(tmp_path, "serve", "features", SILKREC_FEATURES__PORT=str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "SILKREC_FEATURES__PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_names_what_is_broken_and_how_to_mend_it(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    done = silkrec(tmp_path, "doctor", "--json", SILKREC_REDIS__URL=f"redis://127.0.0.1:{nobody}/0")
    assert done.returncode == 1
    findings = {row["what"]: row for row in json.loads(done.stdout)["findings"]}
    assert findings["redis"]["verdict"] == "fail"
    assert "SILKREC_REDIS__URL" in findings["redis"]["mend"]


def test_the_schema_is_reported_and_upgraded(tmp_path: Path) -> None:
    assert silkrec(tmp_path, "database", "status").returncode == 1
    assert silkrec(tmp_path, "database", "upgrade").returncode == 0
    done = silkrec(tmp_path, "database", "status", "--json")
    assert (done.returncode, json.loads(done.stdout)["pending"]) == (0, False)


def test_of_each_pending_migration_it_is_said_whether_it_ends_the_way_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'older.db'}"
    database = Database(url, DatabaseSettings())
    migrate.upgrade(database, "0003")
    database.close()
    done = silkrec(tmp_path, "database", "status", "--json", SILKREC_DATABASE__URL=url)
    told = json.loads(done.stdout)
    assert (done.returncode, told["pending"]) == (1, True)
    ends = {one["revision"]: one["contracts"] for one in told["migrations"]}
    assert "0003" not in ends
    assert "took_us" in ends["0004"]
    assert ends["0005"] is None
    shown = silkrec(tmp_path, "database", "status", SILKREC_DATABASE__URL=url, COLUMNS="200")
    rows = {line.split()[1]: line for line in shown.stdout.splitlines() if line.startswith("│")}
    assert "ends here: experiment_unit_days" in rows["0004"]
    assert "stays possible" in rows["0005"]
