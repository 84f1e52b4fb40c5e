"""Who gets in, what they may do, and which forms are believed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from services.recommender.experiments.dashboard.access import sessions
from services.recommender.experiments.dashboard.access.secret import FILE_NAME, session_secret
from services.recommender.experiments.dashboard.access.sessions import Access, Session, Way
from services.recommender.experiments.dashboard.guard import safe_next
from services.recommender.experiments.definitions import Status
from shared.errors import ConfigurationError
from shared.settings.roots import DashboardSettings
from tests.asgi import running
from tests.dashboard_app import NOW_US, SECRET, FakeKeys, FakePort, application, some_keys

pytestmark = pytest.mark.anyio
ORIGIN = {"origin": "http://localhost"}
STOP = "/dashboard/experiments/diverse-home/stop"
PROXY = DashboardSettings.model_validate(
    {"proxy_user_header": "X-User", "proxy_role_header": "X-Role", "trusted_proxies": ["127.0.0.1/32"]}
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def opened(
    port: FakePort | None = None,
    keys: FakeKeys | None = None,
    settings: DashboardSettings | None = None,
    base_url: str = "http://localhost",
) -> AsyncIterator[httpx.AsyncClient]:
    async with running(application(port or FakePort(), keys, settings), base_url=base_url) as client:
        yield client


async def fields(client: httpx.AsyncClient, path: str, **more: str) -> dict[str, str]:
    """The hidden fields of the page's last form, with `more`."""
    html = (await client.get(path)).text
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html))
    return {**hidden, **more}


async def sign_in(client: httpx.AsyncClient, key: str) -> httpx.Response:
    form = await fields(client, "/dashboard/sign-in?next=/dashboard/users", key=key)
    return await client.post("/dashboard/sign-in", data=form, headers=ORIGIN)


async def test_with_keys_everything_leads_to_sign_in_and_back() -> None:
    async with opened(keys=some_keys()) as client:
        for path in ("", "/experiments/diverse-home", "/experiments.json", "/users/ann", "/nowhere"):
            answer = await client.get(f"/dashboard{path}")
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/dashboard/sign-in?next=")
        done = await sign_in(client, "sk_admin_x")
        assert (done.status_code, done.headers["location"]) == (303, "/dashboard/users")
        cookie = done.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=lax", "path=/dashboard", "max-age=14400"))
        assert "sk_admin_x" not in cookie
        assert (await client.get("/dashboard")).status_code == 200


@pytest.mark.parametrize("key", ["sk_client_x", "sk_nobody", ""])
async def test_other_keys_do_not_sign_in(key: str) -> None:
    async with opened(keys=some_keys()) as client:
        assert (await sign_in(client, key)).status_code == 403
        assert (await client.get("/dashboard")).status_code == 303


async def test_a_server_key_looks_and_changes_nothing() -> None:
    port = FakePort()
    async with opened(port, some_keys()) as client:
        await sign_in(client, "sk_server_x")
        html = (await client.get("/dashboard/experiments/diverse-home")).text
        assert "/stop" not in html
        assert "/kill" not in html
        assert (await client.get(STOP)).status_code == 403
        assert (await client.get("/dashboard/new")).status_code == 403
        assert (await client.post(STOP, headers=ORIGIN)).status_code == 403
    assert port.experiments["diverse-home"].definition.status is Status.RUNNING


async def test_a_revoked_key_ends_its_sessions() -> None:
    keys = some_keys()
    async with opened(keys=keys) as client:
        await sign_in(client, "sk_admin_x")
        keys.revoked.add("key_admin")
        assert (await client.get("/dashboard")).status_code == 303


async def test_signing_out_forgets_the_cookie() -> None:
    async with opened(keys=some_keys()) as client:
        await sign_in(client, "sk_admin_x")
        form = await fields(client, "/dashboard")
        assert (await client.post("/dashboard/sign-out", data=form, headers=ORIGIN)).status_code == 303
        assert (await client.get("/dashboard")).status_code == 303


async def test_an_editor_stops_an_experiment_and_the_audit_log_names_who() -> None:
    port = FakePort()
    async with opened(port, some_keys()) as client:
        await sign_in(client, "sk_admin_x")
        answer = await client.post(STOP, data=await fields(client, STOP), headers=ORIGIN)
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/experiments/diverse-home")
    assert port.entries["diverse-home"][0].actor == "key:the admin"
    assert port.experiments["diverse-home"].definition.status is Status.STOPPED


@pytest.mark.parametrize(
    ("headers", "change"),
    [
        ({"origin": "http://evil.example"}, {}),
        ({"origin": "null"}, {}),
        ({}, {}),
        ({"referer": "http://evil.example/dashboard"}, {}),
        ({**ORIGIN, "sec-fetch-site": "cross-site"}, {}),
        (ORIGIN, {"form_token": ""}),
        (ORIGIN, {"form_token": "é"}),
        (ORIGIN, {"form_token": "A" * 43}),
    ],
)
async def test_a_forged_form_is_refused(headers: dict[str, str], change: dict[str, str]) -> None:
    port = FakePort()
    for keys in (None, some_keys()):
        async with opened(port, keys) as client:
            if keys:
                await sign_in(client, "sk_admin_x")
            form = await fields(client, STOP, **change)
            answer = await client.post(STOP, data=form, headers=headers)
            assert answer.status_code == 403
            assert "text/html" in answer.headers["content-type"]
    assert port.experiments["diverse-home"].definition.status is Status.RUNNING


async def test_a_token_of_one_browser_is_nothing_in_another() -> None:
    port = FakePort()
    async with opened(port, some_keys()) as one, opened(port, some_keys()) as other:
        await sign_in(one, "sk_admin_x")
        await sign_in(other, "sk_admin_x")
        form = await fields(one, STOP)
        assert (await other.post(STOP, data=form, headers=ORIGIN)).status_code == 403


async def test_a_form_seen_before_a_change_is_a_conflict() -> None:
    port = FakePort()
    async with opened(port) as client:
        form = await fields(client, STOP)
        await port.kill_variant("diverse-home", "diverse", "somebody")
        assert (await client.post(STOP, data=form, headers=ORIGIN)).status_code == 409


async def test_without_keys_this_machine_edits_as_local_and_the_page_says_so() -> None:
    port = FakePort()
    async with opened(port) as client:
        assert "No API keys are set up" in (await client.get("/dashboard")).text
        await client.post(STOP, data=await fields(client, STOP), headers=ORIGIN)
    assert port.entries["diverse-home"][0].actor == "local"


async def test_without_keys_a_foreign_host_name_is_refused() -> None:
    """DNS rebinding: another site's name that points at this machine."""
    async with opened(base_url="http://rebound.example") as client:
        assert (await client.get("/dashboard")).status_code == 403


async def test_a_proxys_header_signs_in_with_its_role() -> None:
    port = FakePort()
    async with opened(port, some_keys(), PROXY) as client:
        client.headers.update({"x-user": "mei@example.com", "x-role": "editor"})
        await client.post(STOP, data=await fields(client, STOP), headers=ORIGIN)
        assert port.entries["diverse-home"][0].actor == "proxy:mei@example.com"
        client.headers["x-role"] = "viewer"
        assert (await client.get(STOP)).status_code == 403
        assert (await client.get("/dashboard")).status_code == 200
        client.headers["x-role"] = "root"
        assert (await client.get("/dashboard")).status_code == 403


@pytest.mark.parametrize(
    "settings",
    [DashboardSettings(), PROXY.model_copy(update={"trusted_proxies": ()})],
    ids=["switched off", "another peer"],
)
async def test_the_header_of_anybody_else_is_only_text(settings: DashboardSettings) -> None:
    async with opened(keys=some_keys(), settings=settings) as client:
        answer = await client.get("/dashboard", headers={"x-user": "mei", "x-role": "editor"})
        assert answer.status_code == 303


async def test_with_a_proxy_set_up_nobody_is_local() -> None:
    async with opened(settings=PROXY) as client:
        assert (await client.get("/dashboard")).status_code == 303
        assert "done by the proxy" in (await client.get("/dashboard/sign-in")).text


def test_a_proxy_header_without_a_trusted_network_stops_the_start() -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        DashboardSettings(proxy_user_header="X-User")


def test_a_changed_cookie_is_no_session() -> None:
    session = Session(
        name="ops", access=Access.VIEWER, way=Way.KEY, nonce="n", key_id="key_1", expires_s=NOW_US / 1e6 + 60
    )
    cookie = sessions.write(session, SECRET)
    assert sessions.read(cookie, SECRET, NOW_US / 1e6) == session
    assert sessions.read(cookie, SECRET, NOW_US / 1e6 + 60) is None
    assert sessions.read(cookie, b"another secret", NOW_US / 1e6) is None
    for damaged in ("", ".", "é.é", cookie[:-1], "A" + cookie, cookie.replace(".", "..")):
        assert sessions.read(damaged, SECRET, NOW_US / 1e6) is None


@pytest.mark.parametrize(
    "text",
    ["https://evil.example", "//evil.example", "/\\evil", "/dashboard//x", "/v1", "", "/dashboardx", "/dashboard\n"],
)
def test_after_sign_in_nobody_is_led_elsewhere(text: str) -> None:
    assert safe_next(text) == "/dashboard"


def test_the_secret_is_drawn_once_and_kept_private(tmp_path: Path) -> None:
    drawn = session_secret(None, tmp_path / "var")
    assert len(drawn) == 32
    assert session_secret(None, tmp_path / "var") == drawn
    assert (tmp_path / "var" / FILE_NAME).stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "var").iterdir()] == [FILE_NAME]
    assert session_secret(SecretStr("x" * 32), tmp_path) == b"x" * 32
    (tmp_path / "var" / FILE_NAME).write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="damaged"):
        session_secret(None, tmp_path / "var")
