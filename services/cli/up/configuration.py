"""Configuration of nginx, Prometheus and Alertmanager: infra's files with this machine's addresses, under `up/` of the
state folder. What is said in infra is said there alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from services.cli.up.plan import Plan, program
from shared.errors import ConfigurationError

RENDER_S = 20.0


def write(plan: Plan) -> None:
    """Everything, and each program's word that it can be used. Raises ConfigurationError."""
    plan.made.mkdir(parents=True, exist_ok=True, mode=0o700)
    plan.logs.mkdir(parents=True, exist_ok=True)
    _write_nginx(plan)
    _write_prometheus(plan)
    _write_alertmanager(plan)


def nginx_command(plan: Plan) -> list[str]:
    # Workers of a server that root starts become nobody, who cannot enter a state folder that is root's alone.
    told = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
    return [program("nginx"), "-c", str(plan.made / "nginx" / "nginx.conf"), "-e", "stderr", "-g", told]


def _write_nginx(plan: Plan) -> None:
    own = plan.made / "nginx.env"
    own.write_text("".join(f"SILKREC_NGINX_{name}={value}\n" for name, value in plan.own_nginx().items()))
    theirs = [str(plan.nginx_env.resolve())] if plan.nginx_env is not None else []
    _call(str(plan.infra / "nginx" / "render"), str(plan.made / "nginx"), str(own), *theirs)
    _call(*nginx_command(plan), "-t")


def _write_prometheus(plan: Plan) -> None:
    folder = plan.made / "prometheus"
    folder.mkdir(exist_ok=True)
    source = plan.infra / "prometheus"
    told = yaml.safe_load((source / "prometheus.yml").read_text("utf-8"))
    told["rule_files"] = [str(source.resolve() / name) for name in told["rule_files"]]
    told["alerting"]["alertmanagers"] = [{"static_configs": [_static(plan.urls()["alertmanager"])]}]
    for job in told["scrape_configs"]:
        name = job["job_name"]
        if name == "silkrec":
            job["file_sd_configs"][0]["files"] = [str(folder / "targets.yml")]
        else:
            job["static_configs"] = [_static(plan.urls()[name], name)]
    targets = [_static(url, name) for name, url in plan.services.items()]
    (folder / "targets.yml").write_text(yaml.safe_dump(targets))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    _call(program("promtool"), "check", "config", str(path))


def _static(url: str, service: str = "") -> dict[str, Any]:
    labels = {"labels": {"service": service}} if service else {}
    return {"targets": [url.removeprefix("http://")], **labels}


def _write_alertmanager(plan: Plan) -> None:
    folder = plan.made / "alertmanager"
    folder.mkdir(exist_ok=True)
    told = yaml.safe_load((plan.infra / "alertmanager" / "alertmanager.yml").read_text("utf-8"))
    receiver = plan.services.get("alerts")
    for entry in told["receivers"]:
        if receiver is None:  # no robot has a token: alerts are to be seen in Alertmanager only
            del entry["webhook_configs"]
            continue
        for webhook in entry["webhook_configs"]:
            webhook["url"] = f"{receiver}/v1/alertmanager"
            token = plan.loaded.settings.alerts.webhook_token
            if token is not None:
                webhook["http_config"] = {"authorization": {"credentials_file": _secret(folder, token)}}
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    _call(program("amtool"), "check-config", str(path))


def _secret(folder: Path, token: Any) -> str:
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(token.get_secret_value())
    return str(path)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_S, check=False)
    if done.returncode != 0:
        raise ConfigurationError(f"{Path(command[0]).name} refuses its configuration: {done.stderr.strip()[-600:]}")
