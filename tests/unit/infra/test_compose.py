"""compose.yaml: what it names exists, what it sets is a setting, and nothing in it may do more than it must."""

from __future__ import annotations

import functools
import operator
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml

from shared.settings.roots import Settings
from tests.unit.infra.parts import INFRA, assert_is_command, run, settings_of

COMPOSE = INFRA / "compose.yaml"
# What compose-spec knows of a service, in so far as we use it: a misspelt key would be ignored by nobody but us.
SERVICE_KEYS = {
    "image", "command", "entrypoint", "environment", "env_file", "volumes", "tmpfs", "ports", "depends_on",
    "healthcheck", "restart", "init", "read_only", "cap_drop", "security_opt", "logging", "stop_grace_period", "user",
    "network_mode", "profiles", "configs", "deploy",
}  # fmt: skip
ALERTS_PORT = operator.attrgetter("alerts.port")
OURS = ("recommender", "features", "inference", "jobs")


@functools.cache
def composed() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = composed()["services"]
    return found


def filled(text: str) -> str:
    """As compose fills in variables: given ones, else their default."""
    given = {"DATABASE_PASSWORD": "secret"}
    return re.sub(
        r"\$\{(\w+)(?::([-?])([^}]*))?\}", lambda m: given.get(m[1], (m[3] or "") if m[2] == "-" else ""), text
    )


def test_keys_are_composes_and_everything_that_is_named_is_there() -> None:
    whole = composed()
    assert {"name", "services", "configs", "volumes"} == {key for key in whole if not key.startswith("x-")}
    for name, service in services().items():
        assert service.keys() <= SERVICE_KEYS, name
        for other, how in service.get("depends_on", {}).items():
            assert other in services()
            assert how["condition"] != "service_healthy" or "test" in services()[other]["healthcheck"], other
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in whole["volumes"], f"{name}: {source}"
        for config in service.get("configs", []):
            assert config["source"] in whole["configs"]
    overlay = yaml.safe_load((INFRA / "docker" / "compose.gpu.yaml").read_text())
    assert overlay["services"].keys() <= services().keys()


def test_every_variable_is_pinned_or_in_the_example() -> None:
    images = re.findall(r"^(\w+) ", (INFRA / "docker" / "images.txt").read_text(), re.MULTILINE)
    example = re.findall(r"^#?([A-Z_]+)=", (INFRA / "docker" / "compose.env.example").read_text(), re.MULTILINE)
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    assert used <= {*images, *example}
    assert {*images, *example} - used <= {"PYTHON_IMAGE", "COMPOSE_PROFILES"}, "nobody uses it any more"
    assert not [name for name in example if name.startswith("SILKREC_")], "a shell that has it could start no silkrec"


def test_nothing_may_do_more_than_it_must() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in service, name
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${PUBLIC_ADDRESS:-127.0.0.1:")), (
                f"{name} is open to everybody: {port}"
            )
        assert name == "nginx" or name not in OURS or "ports" not in service


def environment(name: str) -> dict[str, str]:
    return {key: filled(value) for key, value in services()[name].get("environment", {}).items()}


@pytest.mark.parametrize("name", OURS)
def test_a_service_gets_settings_that_exist_and_is_asked_where_it_listens(name: str, tmp_path: Path) -> None:
    settings: Settings = settings_of(environment(name), tmp_path)
    own = getattr(settings, name)
    assert own.host == "0.0.0.0"
    assert services()[name]["command"] == ["serve", name]
    assert_is_command(services()[name]["command"])
    assert services()[name]["healthcheck"]["test"][-1] == f"http://127.0.0.1:{own.port}"
    assert {"targets": [f"{name}:{own.port}"], "labels": {"service": name}} in yaml.safe_load(
        composed()["configs"]["targets"]["content"]
    )
    redis, broker = settings.redis_url(), operator.methodcaller("broker_url")(settings)
    assert redis.split("/")[2] == "redis"
    assert broker.split("/")[2] == "broker"


def test_the_database_is_asked_over_tls_without_which_mysqls_own_sign_in_fails(tmp_path: Path) -> None:
    url = sqlalchemy.make_url(environment("recommender")["SILKREC_DATABASE__URL"])
    engine = sqlalchemy.create_engine(url)
    _, told = engine.dialect.create_connect_args(engine.url)
    assert told["ssl"] == {"check_hostname": False}
    assert told["password"] == "secret"


def test_what_is_mounted_exists_and_may_be_run_where_it_must() -> None:
    for service in services().values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (INFRA / volume.split(":")[0]).exists(), volume
    for file in services()["nginx"]["env_file"]:
        assert (INFRA / file).is_file()


def test_nginx_is_told_what_its_templates_ask() -> None:
    known = re.findall(r"^(\w+)=", (INFRA / "nginx" / "defaults.env").read_text(), re.MULTILINE)
    told = services()["nginx"]["environment"]
    for name, value in told.items():
        if name.startswith("SILKREC_NGINX_"):
            assert name in known
            host, port = value.split(":")
            expected = {"GRPC": 8083, "FEATURES": 8081, "INFERENCE": 8082, "RECOMMENDERS": 8080}
            assert host in OURS
            assert int(port) == expected[name.removeprefix("SILKREC_NGINX_")]
    # nginx's image ignores a file that may not be executed.
    assert (INFRA / "nginx" / "servers.envsh").stat().st_mode & 0o111, "chmod +x infra/nginx/servers.envsh"


def test_prometheus_and_alertmanager_meet_where_their_files_say() -> None:
    """One loopback for three: the files under infra/ name it."""
    for name in ("alertmanager", "alerts"):
        assert services()[name]["network_mode"] == "service:prometheus"
    assert "127.0.0.1:9093" in (INFRA / "prometheus" / "prometheus.yml").read_text()
    assert f"127.0.0.1:{ALERTS_PORT(Settings())}" in (INFRA / "alertmanager" / "alertmanager.yml").read_text()
    assert_is_command(services()["alerts"]["command"])
    ((example,),) = [
        re.findall(r"^#ALERTS_TARGETS=(.*)$", (INFRA / "docker" / "compose.env.example").read_text(), re.MULTILINE)
    ]
    assert yaml.safe_load(example)[0]["targets"] == [f"127.0.0.1:{ALERTS_PORT(Settings())}"]
    assert yaml.safe_load(filled(composed()["configs"]["alerts_targets"]["content"])) == []


def test_the_shell_lines_of_health_checks_are_shell() -> None:
    for service in services().values():
        test = service["healthcheck"].get("test", ["CMD"])
        if test[0] == "CMD-SHELL":
            run("sh", "-n", "-c", test[1].replace("$$", "$"))
