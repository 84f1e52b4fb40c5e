"""The GPU's alerts on what was recorded on an H100: which load fires them, and which does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import needed
from tests.servers import program
from tests.unit.infra.declared import REPOSITORY

RECORDED = json.loads((REPOSITORY / "tests" / "data" / "gpu_metrics.json").read_text())
RULES = REPOSITORY / "infra" / "prometheus" / "rules" / "alerts.yml"
FOR_MINUTES = 13


def series(phase: str) -> list[dict[str, Any]]:
    """What was recorded, over and over until the alerts' times are full."""
    rows = RECORDED["phases"][phase]
    samples = FOR_MINUTES * 60 // RECORDED["every_s"]
    return [
        {
            "series": f'silkrec_inference_{name}{{instance="gpu-1"}}',
            "values": " ".join(str(rows[at % len(rows)][name]) for at in range(samples)),
        }
        for name in rows[0]
    ]


def raised(name: str, severity: str) -> str:
    return f'ALERTS{{alertname="{name}",alertstate="firing",instance="gpu-1",severity="{severity}"}}'


@pytest.mark.parametrize(
    ("phase", "firing"),
    [
        ("lite: 64 clients without a pause", {"SilkrecGpuBusy": "warning"}),
        ("m: 64 clients without a pause", {"SilkrecMemoryFragmented": "notice"}),
        ("m: 64 clients after the rest", {}),
    ],
)
def test_recorded_load_fires_what_it_should(phase: str, firing: dict[str, str], tmp_path: Path) -> None:
    asked = [
        {
            "expr": f'ALERTS{{alertname="{name}",alertstate="firing"}}',
            "eval_time": f"{FOR_MINUTES - 1}m",
            "exp_samples": [{"labels": raised(name, firing[name]), "value": 1}] if name in firing else [],
        }
        for name in ("SilkrecGpuBusy", "SilkrecMemoryFragmented")
    ]
    test = {"interval": f"{RECORDED['every_s']}s", "input_series": series(phase), "promql_expr_test": asked}
    told = {"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]}
    path = tmp_path / "recorded.test.yml"
    path.write_text(yaml.safe_dump(told, width=100_000))
    with needed():
        command = [program("promtool"), "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
