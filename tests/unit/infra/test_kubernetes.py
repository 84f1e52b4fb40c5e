"""Each overlay, as kustomize makes it, is what Kubernetes' schemas allow; its parts fit each other and our code."""

from __future__ import annotations

import functools
import json
import operator
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.cli.serve import GRACE_S
from services.inference.frames import socket_beside
from shared.observability.metrics import Metrics
from shared.settings.roots import Settings
from shared.web.middleware import RequestMetrics
from tests.unit.infra.declared import declared
from tests.unit.infra.parts import INFRA, assert_is_command, run, settings_of

K8S = INFRA / "k8s"
OVERLAYS = ("cpu", "gpu", "local")
VERSION = "1.34"
OURS = ("recommender", "features", "jobs", "inference")
# preStop, requests under way, then journal, chunks or engine.
PRE_STOP_S, DRAIN_S = 5, 10


@functools.cache
def made(overlay: str) -> tuple[dict[str, Any], ...]:
    folder = K8S / "overlays" / overlay
    text = run("kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", folder)
    return tuple(yaml.load_all(text, yaml.CSafeLoader))


@functools.cache
def loose() -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load_all((K8S / "first-key.yaml").read_text()))


def of_kind(overlay: str, *kinds: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in made(overlay) if one["kind"] in kinds}


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(owner, pod template) of everything that runs."""
    for one in (*made(overlay), *loose()):
        spec = one.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield one["metadata"]["name"], spec["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def environment(overlay: str, container: dict[str, Any]) -> dict[str, str]:
    """As the container would have it; the Secret is the example's where the cluster brings it."""
    told: dict[str, str] = {}
    maps, secrets = of_kind(overlay, "ConfigMap"), of_kind(overlay, "Secret")
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            told |= maps[source["configMapRef"]["name"]]["data"]
        elif source["secretRef"]["name"] not in secrets:
            told |= dict(
                line.split("=", 1)
                for line in (K8S / "secret.env.example").read_text().splitlines()
                if line.startswith("SILKREC_") and not line.endswith("=")
            )
    return told | {one["name"]: one["value"] for one in container.get("env", [])}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_own_schemas_take_it_strictly(overlay: str) -> None:
    for one in (*made(overlay), *loose()):
        validate(json.dumps(one))


@functools.cache
def validate(one: str) -> None:
    """Overlays have most in common; 0.9 s each otherwise."""
    kubernetes_validate.validate(json.loads(one), VERSION, strict=True)


def test_the_strict_schemas_notice_a_misspelt_key() -> None:
    one = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}, "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_and_bounded(overlay: str) -> None:
    for name, pod in pods(overlay):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        for container in containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            assert {mount["name"] for mount in container["volumeMounts"]} <= {
                *(volume["name"] for volume in pod["spec"].get("volumes", [])),
                "data",
            }, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_container_is_told_are_settings_and_commands_of_ours(overlay: str, tmp_path: Path) -> None:
    seen = 0
    for _, pod in pods(overlay):
        for container in containers(pod):
            if not container["image"].split("/")[-1].startswith("silkrec"):
                continue
            seen += 1
            settings = settings_of(environment(overlay, container), tmp_path)
            assert "command" in container or container["args"]
            if "command" not in container:
                assert_is_command(container["args"])
            elif "-ec" in container["command"]:
                (script,) = container["args"]
                run("sh", "-n", "-c", script)
                for line in re.findall(r"silkrec ([^)\n]*)", re.sub(r"\$\(date[^)]*\)", "today", script)):
                    assert_is_command(shlex.split(line))
            name = container["name"]
            if name in OURS:
                own = getattr(settings, name)
                assert own.host == "0.0.0.0"
                assert own.port in [port["containerPort"] for port in container["ports"]]
    assert seen >= 7


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_and_services_name_ports_and_pods_that_exist(overlay: str) -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods(overlay)]
    for _, pod in pods(overlay):
        for container in containers(pod):
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "httpGet" in container.get(probe, {}):
                    assert container[probe]["httpGet"]["port"] in ports
    selectors = [one["spec"]["selector"] for one in of_kind(overlay, "Service").values()]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in of_kind(overlay, "PodDisruptionBudget").values()]
    for policy in of_kind(overlay, "NetworkPolicy").values():
        selectors.append(policy["spec"]["podSelector"].get("matchLabels", {}))
        for rule in (*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])):
            peers = [*rule.get("from", []), *rule.get("to", [])]
            selectors += [peer["podSelector"].get("matchLabels", {}) for peer in peers if "podSelector" in peer]
    for selector in selectors:
        assert any(selector.items() <= one.items() for one in labels), selector


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_is_stopped_has_time_to_finish_what_it_accepted(overlay: str) -> None:
    for name in ("recommender", "features", "jobs", "inference"):
        pod = of_kind(overlay, "Deployment", "StatefulSet").get(name)
        if pod is None:
            continue
        spec = pod["spec"]["template"]["spec"]
        assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(PRE_STOP_S)]
        sidecars = len(spec.get("initContainers", []))
        assert spec["terminationGracePeriodSeconds"] > PRE_STOP_S + (1 + sidecars) * (GRACE_S + DRAIN_S)


@pytest.mark.parametrize("overlay", ["cpu", "local"])
@pytest.mark.parametrize("name", ["recommender", "jobs"])
def test_beside_its_engine_a_service_meets_it_at_both_sockets_in_one_folder(
    overlay: str, name: str, tmp_path: Path
) -> None:
    """Decision 11: the near door lies beside the gRPC socket, so one shared folder is both."""
    pod = of_kind(overlay, "Deployment")[name]["spec"]["template"]
    engine, service = containers(pod)
    assert engine["name"] == "inference"
    assert engine["restartPolicy"] == "Always", "a sidecar: starts first, ends last"
    mounts = [
        {m["name"]: m["mountPath"] for m in one["volumeMounts"] if not m.get("readOnly")} for one in (engine, service)
    ]
    (state,) = {"state"} & mounts[0].keys() & mounts[1].keys()
    assert mounts[0][state] == mounts[1][state]
    assert "emptyDir" in next(volume for volume in pod["spec"]["volumes"] if volume["name"] == state)
    # state_dir is silkrec.yaml's in the cluster.
    told = yaml.safe_load((K8S / "base" / "silkrec.yaml").read_text())
    assert told["state_dir"] == mounts[0][state]
    given = [environment(overlay, one) | {"SILKREC_STATE_DIR": told["state_dir"]} for one in (engine, service)]
    settings, asking = (settings_of(one, tmp_path) for one in given)
    assert asking.inference_targets() == (f"unix:{settings.socket_path('inference')}",)
    assert socket_beside(settings.socket_path("inference")).parent == Path(mounts[0][state]) / "run"
    assert settings.inference.grpc_port == -1
    if overlay == "cpu":
        assert settings.inference.threads == int(engine["resources"]["requests"]["cpu"])


def test_engines_alone_are_all_named_and_stand_on_gpu_nodes(tmp_path: Path) -> None:
    engines = of_kind("gpu", "StatefulSet")["inference"]
    assert not any("initContainers" in pod["spec"] for _, pod in pods("gpu"))
    expected = tuple(f"dns:///inference-{at}.inference:8083" for at in range(engines["spec"]["replicas"]))
    for name in ("recommender", "features", "jobs"):
        container = containers(of_kind("gpu", "Deployment")[name]["spec"]["template"])[0]
        assert settings_of(environment("gpu", container), tmp_path).inference_targets() == expected
    service = of_kind("gpu", "Service")["inference"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    for pod in (engines["spec"]["template"], dict(pods("gpu"))["train"]):
        assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert pod["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert containers(pod)[0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert containers(pod)[0]["image"].endswith("silkrec:cuda")


def test_what_scales_a_deployment_is_made_by_the_adapter_of_metrics_that_services_have() -> None:
    rules = yaml.safe_load((K8S / "adapter-rules.yaml").read_text())["rules"]
    by_name = {rule["name"]["as"]: rule for rule in rules}
    asked = {
        metric["pods"]["metric"]["name"]
        for overlay in ("cpu", "gpu")
        for scaler in of_kind(overlay, "HorizontalPodAutoscaler").values()
        for metric in scaler["spec"]["metrics"]
    }
    assert asked == by_name.keys()
    assert not of_kind("local", "HorizontalPodAutoscaler")
    for overlay in ("cpu", "gpu"):
        assert "replicas" not in of_kind(overlay, "Deployment")["recommender"]["spec"], "the autoscaler's alone"
    known = declared()
    for rule in rules:
        query = rule["metricsQuery"] + rule["seriesQuery"]
        names = set(re.findall(r"silkrec_\w+", query))
        assert names <= known.keys()
    metrics = Metrics("recommender")
    RequestMetrics(metrics).total.labels("POST", "/v1/recommend", "200").inc()
    assert b'route="/v1/recommend"' in metrics.render()


def test_promtool_takes_the_scrape_file_and_the_adapters_queries(tmp_path: Path) -> None:
    """All but the discovery itself, which Debian's build leaves out."""
    scrape = yaml.safe_load((K8S / "scrape.yaml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["silkrec"]}}]
    assert job["job_name"] == "silkrec", "rules choose by it"
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump(scrape))
    run("promtool", "check", "config", config)
    queries = [rule["metricsQuery"] for rule in yaml.safe_load((K8S / "adapter-rules.yaml").read_text())["rules"]]
    filled = [
        query.replace("<<.LabelMatchers>>", 'namespace="silkrec",pod=~"a|b"').replace("<<.GroupBy>>", "pod")
        for query in queries
    ]
    rules = tmp_path / "rules.yml"
    named = [{"record": f"adapter:{at}", "expr": query} for at, query in enumerate(filled)]
    rules.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": named}]}))
    run("promtool", "check", "rules", rules)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whoever_must_talk_is_let_through_on_both_sides(overlay: str) -> None:
    def allowed(source: dict[str, str], target: dict[str, str], port: int) -> bool:
        return _allows(overlay, "Egress", source, target, port) and _allows(overlay, "Ingress", target, source, port)

    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay)}
    ways = [("nginx", "recommender", 8080), ("nginx", "features", 8081), ("recommender", "features", 8081)]
    if overlay == "gpu":
        ways += [(name, "inference", 8083) for name in ("recommender", "features", "jobs")]
    if overlay == "local":
        ways += [(name, "mysql", 3306) for name in ("recommender", "features", "jobs", "migrate", "train", "first-key")]
        ways += [(name, "redis", 6379) for name in ("recommender", "features", "jobs")]
    for source, target, port in ways:
        assert allowed(labels[source], labels[target], port), f"{source} cannot reach {target}:{port}"
    for source, target, port in (
        ("nginx", "jobs", 8084),
        ("train", "recommender", 8080),
        ("features", "recommender", 8080),
    ):
        assert not allowed(labels[source], labels[target], port), f"{source} reaches {target}:{port}"


def _allows(overlay: str, way: str, subject: dict[str, str], peer: dict[str, str], port: int) -> bool:
    side = "from" if way == "Ingress" else "to"
    for policy in of_kind(overlay, "NetworkPolicy").values():
        spec = policy["spec"]
        if way not in spec["policyTypes"] or not _selects(spec["podSelector"], subject):
            continue
        for rule in spec.get(way.lower(), []):
            peers = rule.get(side)
            met = peers is None or any("podSelector" in one and _selects(one["podSelector"], peer) for one in peers)
            if met and any(one["port"] == port for one in rule.get("ports", [{"port": port}])):
                return True
    return False


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for one in selector.get("matchExpressions", []):
        if one["operator"] == "Exists":
            met = one["key"] in labels
        else:
            assert one["operator"] == "In"
            met = labels.get(one["key"]) in one["values"]
        if not met:
            return False
    return True


def test_ports_in_policies_and_targets_are_the_settings() -> None:
    settings = Settings()
    ports = (settings.recommender.port, settings.features.port, settings.inference.port, settings.inference.grpc_port)
    assert ports == (8080, 8081, 8082, 8083)
    assert operator.attrgetter("jobs.port")(settings) == 8084
