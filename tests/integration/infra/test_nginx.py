"""A real nginx on infra/nginx's files: who is asked, what is repeated, what is refused, what is written down."""

from __future__ import annotations

import contextlib
import re
import signal
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from services.inference import wire
from services.recommender.routes.forward import is_forwarded
from shared.settings.roots import Settings
from tests.conftest import needed
from tests.nginx import INFRA, REPOSITORY, Backend, Nginx, backend, nginx, render
from tests.servers import free_port, program

pytestmark = pytest.mark.integration
SLATE = "/v1/recommend"


class Site:
    """nginx before recommenders a (weight 3) and b and features services f and g; `patient` asks another nginx, which
    never lets a server rest, however often it fails."""

    def __init__(self, front: Nginx, servers: dict[str, Backend], patient: Nginx) -> None:
        self.front, self.servers = front, servers
        self.http = httpx.Client(base_url=front.url, timeout=10, trust_env=False)
        self.patient = httpx.Client(base_url=patient.url, timeout=10, trust_env=False)

    def ask(self, path: str = SLATE, method: str = "POST", *, expect: int = 200, **options: Any) -> httpx.Response:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == expect, answer.text
        return answer

    def who(self, path: str = SLATE, method: str = "POST", **options: Any) -> str:
        server: str = self.ask(path, method, **options).json()["server"]
        return server

    def tried(self, marker: str) -> list[tuple[str, dict[str, Any]]]:
        """Servers that got the request with this id, with what they got, in no order."""
        return [
            (name, got)
            for name, server in self.servers.items()
            for got in server.got()
            if got["headers"]["x-request-id"] == marker
        ]

    def none_rested(self, count: int) -> bool:
        """While the last `count` were asked; nginx names itself where it had no server left."""
        return not any("silkrec_" in line["upstream"] for line in self.front.lines()[-count:])

    def restart(self, name: str) -> None:
        """And nginx has forgiven it, for turns and for users."""
        server = self.servers[name]
        if server.process is None:
            server.start()
        if name in "fg":
            self._all_asked({"f", "g"}, "/v1/events", [{}] * 8)
        else:
            self._all_asked({"a", "b"}, SLATE, [{}] * 8)
            self._all_asked({"a", "b"}, SLATE, [{"x-silkrec-user": f"u:{n}"} for n in range(16)])

    def _all_asked(self, names: set[str], path: str, headers: list[dict[str, str]]) -> None:
        deadline = time.monotonic() + 10
        while {self.who(path, headers=sent) for sent in headers} != names or not self.none_rested(len(headers)):
            assert time.monotonic() < deadline, f"one of {names} is not used again"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("nginx")
    with needed(), contextlib.ExitStack() as stack:
        program("nginx")
        servers = {name: stack.enter_context(backend(folder, name)) for name in ("a", "b", "f", "g")}
        a, b, f, g = (server.address for server in servers.values())
        front = nginx(folder / "front", recommenders=f"{a} weight=3, {b}", features=f"{f},{g}", trusted="127.0.0.0/8")
        never_rests = ", ".join(f"{address} max_fails=0" for address in (a, b))
        patient = nginx(
            folder / "patient",
            recommenders=never_rests,
            features=f"{f} max_fails=0,{g} max_fails=0",
            trusted="0.0.0.0/0",
        )
        found = Site(stack.enter_context(front), servers, stack.enter_context(patient))
        yield found
        found.http.close()
        found.patient.close()


def test_weights_are_kept(site: Site) -> None:
    counted = Counter(site.who() for _ in range(400))
    assert 0.7125 <= counted["a"] / 400 <= 0.7875, counted


def test_a_user_keeps_to_one_server_and_users_are_spread_by_weight(site: Site) -> None:
    homes = {n: site.who(headers={"x-silkrec-user": f"u:{n}"}) for n in range(100)}
    again = {n: site.who(headers={"x-silkrec-user": f"u:{n}"}) for n in range(100)}
    assert homes == again
    assert 55 <= Counter(homes.values())["a"] <= 92, "three quarters, as far as a hundred users can tell"


def test_a_recommender_that_dies_under_load_costs_no_request(site: Site) -> None:
    statuses: Counter[int] = Counter()
    killed = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=site.front.url, timeout=10, trust_env=False) as client:
            for n in range(150):
                statuses[client.post(SLATE, json={"n": n}).status_code] += 1
                if sum(statuses.values()) > 60:
                    killed.set()

    askers = [threading.Thread(target=load) for _ in range(3)]
    for asker in askers:
        asker.start()
    assert killed.wait(20)
    site.servers["a"].kill()
    for asker in askers:
        asker.join()
    assert statuses == {200: 450}
    assert site.who(headers={"x-silkrec-user": "u:1"}) == "b", "the users of the dead server are served by another"
    site.restart("a")


@pytest.mark.parametrize("headers", [{}, {"x-silkrec-user": "u:1"}])
def test_a_recommender_that_is_back_is_asked_while_it_still_rests_and_the_other_is_away(
    site: Site, headers: dict[str, str]
) -> None:
    """What a rolling restart does that goes on as soon as the one before is ready."""
    site.servers["a"].kill()
    for n in range(16):
        site.ask(headers={"x-silkrec-user": f"u:{n}"} if headers else {})
    site.servers["a"].start()
    site.servers["b"].kill()
    try:
        assert [site.who(headers=headers) for _ in range(4)] == ["a"] * 4
        assert not site.none_rested(4)
    finally:
        site.restart("b")


def test_a_write_that_reached_nobody_is_repeated_though_all_rest(site: Site) -> None:
    site.servers["f"].kill()
    for _ in range(16):
        site.ask("/v1/events", json={})
    site.servers["f"].start()
    site.servers["g"].kill()
    try:
        assert [site.who("/v1/items", json={}) for _ in range(4)] == ["f"] * 4
    finally:
        site.restart("g")


def test_a_recommender_that_hangs_is_given_up_after_two_seconds(site: Site) -> None:
    user = next(f"u:{n}" for n in range(50) if site.who(headers={"x-silkrec-user": f"u:{n}"}) == "a")
    site.servers["a"].send(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        assert site.who(headers={"x-silkrec-user": user}) == "b"
        assert 1.9 < time.monotonic() - begin < 3.5
    finally:
        site.servers["a"].send(signal.SIGCONT)


def test_both_attempts_at_a_slate_carry_the_same_id_and_arrival(site: Site) -> None:
    headers = {"x-request-id": "twice-1", "x-test": "a=503,b=503", "x-request-start": "t=1.000"}
    answer = site.ask(expect=503, headers=headers)
    tried = site.tried("twice-1")
    assert sorted(name for name, _ in tried) == ["a", "b"], "one server more, and no third attempt"
    starts = {got["headers"]["x-request-start"] for _, got in tried}
    assert len(starts) == 1
    assert abs(float(starts.pop().removeprefix("t=")) - time.time()) < 60, "the client's own word does not count"
    assert answer.json()["server"] in "ab", "the service's own refusal is passed on as it is"


@pytest.mark.parametrize(
    ("method", "path", "attempts"),
    [
        ("POST", "/v1/recommend", 2),
        ("POST", "/v1/recommend:batch", 2),
        ("POST", "/v1/events", 2),
        ("PUT", "/v1/items/shoe", 2),
        ("DELETE", "/v1/feedback/ann/shoe/like", 2),
        ("POST", "/v1/items", 1),
        ("PATCH", "/v1/users/ann", 1),
        ("POST", "/v1/users:merge", 1),
        ("POST", "/v1/experiments/button:ship", 1),
    ],
)
def test_only_what_is_harmless_is_sent_twice(site: Site, method: str, path: str, attempts: int) -> None:
    """The first server hangs up after it had the whole request."""
    marker = f"harmless-{method}-{path.replace('/', '.')}"
    headers = {"x-request-id": marker, "x-test": "a=die,b=die,f=die,g=die"}
    answer = site.patient.request(method, path, headers=headers, json={})
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert len(site.tried(marker)) == attempts


def test_a_refusal_of_the_database_is_no_reason_to_ask_elsewhere(site: Site) -> None:
    site.ask("/v1/events", expect=503, headers={"x-request-id": "refused-1", "x-test": "f=503,g=503"}, json={})
    assert len(site.tried("refused-1")) == 1


def test_every_route_reaches_the_service_that_has_it(site: Site) -> None:
    """`is_forwarded` is the recommender's own rule for one public URL; both must agree."""
    paths = orjson.loads((REPOSITORY / "openapi.json").read_bytes())["paths"]
    for template, operations in paths.items():
        path = re.sub(r"\{[a-z_]+\}", "x", template)
        for method in operations:
            owner = site.who(path, method.upper())
            assert (owner in "fg") == is_forwarded(path), f"{method} {template} went to {owner}"


def test_ids_in_paths_arrive_as_they_were_sent(site: Site) -> None:
    got = site.ask("/v1/items/a%20b%3Bc%27", "GET").json()
    assert got["path"] == "/v1/items/a%20b%3Bc%27"


def test_nobody_names_himself_to_the_dashboard_through_the_proxy(site: Site) -> None:
    got = site.ask("/dashboard", "GET", headers={"x-forwarded-user": "root", "x-forwarded-role": "editor"}).json()
    assert not {"x-forwarded-user", "x-forwarded-role"} & set(got["headers"])


def test_metrics_are_not_public(site: Site) -> None:
    assert site.ask("/metrics", "GET", expect=404).json()["code"] == "not_found"


def test_a_long_body_is_a_413_where_it_is_too_long(site: Site) -> None:
    body = b" " * (300 * 1024)
    refused = site.ask(expect=413, content=body)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "payload_too_large"
    assert site.ask("/v1/events", content=body).json()["bytes"] == len(body)


def test_body_limits_are_the_services_own() -> None:
    told = dict(
        line.split("=", 1) for line in (INFRA / "defaults.env").read_text().splitlines() if line and line[0] != "#"
    )
    units = {"k": 1024, "m": 1024 * 1024}
    sizes = {
        name: int(told[f"SILKREC_NGINX_{name}"][:-1]) * units[told[f"SILKREC_NGINX_{name}"][-1]]
        for name in ("READ_BODY", "WRITE_BODY", "GRPC_BODY")
    }
    settings = Settings()
    assert sizes == {
        "READ_BODY": settings.recommender.max_body_bytes,
        "WRITE_BODY": settings.features.max_body_bytes,
        "GRPC_BODY": wire.MESSAGE_BYTES_IN,
    }


def test_the_access_log_has_upstream_times_and_no_ids(site: Site) -> None:
    site.ask("/v1/users/very-private/export", "GET", headers={"x-request-id": "logged-1"})
    site.ask(headers={"x-request-id": "logged-2", "x-test": "a=503", "x-silkrec-user": "u:very-private"})
    site.ask("/v1/popular", "GET", headers={"x-request-id": 'bad"id'})
    logged = {line["request_id"]: line for line in site.front.lines()}
    assert logged["logged-1"]["route"] == "/v1/users/{user_id}/export"
    assert logged["logged-1"]["status"] == 200
    assert float(logged["logged-1"]["upstream_s"]) >= 0
    assert float(logged["logged-1"]["upstream_connect_s"]) >= 0
    assert "very-private" not in site.front.access.read_text()
    last = site.front.lines()[-1]
    assert last["route"] == "/v1/popular"
    assert re.fullmatch("[0-9a-f]{32}", last["request_id"]), "an id that is not well formed is replaced"


def test_who_asks_too_often_is_told_when_to_come_back(site: Site, tmp_path: Path) -> None:
    address = site.servers["b"].address
    limits = {"read_rate": "1r/s", "read_burst": "4", "write_rate": "1r/s", "write_burst": "2"}
    with (
        nginx(tmp_path / "limited", recommenders=address, features=address, **limits) as front,
        httpx.Client(base_url=front.url, timeout=10, trust_env=False) as client,
    ):
        answers = [client.post(SLATE, json={}, headers={"x-request-id": f"l-{n}"}) for n in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
        refused = answers[-1]
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-request-id"] == "l-7"
        problem = refused.json()
        assert (problem["code"], problem["status"], problem["request_id"]) == ("too_many_requests", 429, "l-7")
        assert client.post("/v1/events", json={}).status_code == 200, "writes are counted apart"


def test_all_down_is_a_503_that_says_so(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with needed(), nginx(tmp_path / "alone", recommenders=nobody) as front:
        answer = httpx.post(front.url + SLATE, json={}, trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["code"] == "dependency_unavailable"
    assert answer.headers["retry-after"] == "1"


def test_the_example_with_tls_serves_the_same_routes(site: Site, tmp_path: Path) -> None:
    certificate, key, port = tmp_path / "tls.crt", tmp_path / "tls.key", free_port()
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    example = (INFRA / "tls.conf.example").read_text()
    for name, value in (("listen 8443", f"listen 127.0.0.1:{port}"), ("/etc/nginx/tls", str(tmp_path))):
        assert name in example
        example = example.replace(name, value)
    folder = tmp_path / "front"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "conf.d" / "40-tls.conf").write_text(example)
    with (
        nginx(folder, recommenders=site.servers["b"].address),
        httpx.Client(verify=ssl.create_default_context(cafile=str(certificate)), trust_env=False) as client,
    ):
        answer = client.post(f"https://127.0.0.1:{port}{SLATE}", json={})
    assert answer.json()["headers"]["x-forwarded-proto"] == "https"
    assert answer.headers["strict-transport-security"]


def test_a_misspelt_variable_stops_the_rendering(tmp_path: Path) -> None:
    (tmp_path / "mine.env").write_text("SILKREC_NGNIX_LISTEN=80\n")
    done = subprocess.run(
        [str(INFRA / "render"), str(tmp_path / "out"), str(tmp_path / "mine.env")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "SILKREC_NGNIX_LISTEN" in done.stderr


def test_the_defaults_are_a_configuration_that_nginx_takes(tmp_path: Path) -> None:
    with needed():
        command = [program("nginx"), "-t", "-e", "stderr", "-c", str(render(tmp_path / "conf"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.replace('the "user" directive', ""), done.stderr
