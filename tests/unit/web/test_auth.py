from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt
import pytest

from shared.errors import ConfigurationError, Forbidden, ValidationFailed
from shared.web.auth import Principal, authorize_user, check_binding, require
from tests.asgi import running
from tests.unit.web.example import KEYS, NO_KEYS, SECRET, FakeKeys, build


def ask(
    path: str,
    *,
    keys: FakeKeys = KEYS,
    key: str | None = None,
    method: str = "GET",
    base_url: str = "http://testserver",
    secret: str | None = SECRET,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> httpx.Response:
    async def main() -> httpx.Response:
        sent = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        if key is not None:
            sent.append((b"authorization", f"Bearer sk_{key}_x".encode()))
        async with running(build(keys=keys, secret=secret), base_url=base_url) as client:
            return await client.request(method, path, headers=sent, **options)

    return asyncio.run(main())


def token(sub: Any = "ann", *, secret: str = SECRET, algorithm: str = "HS256", exp: float | None = None) -> str:
    claims = {"sub": sub, "exp": time.time() + 60 if exp is None else exp}
    return jwt.encode(claims, secret, algorithm=algorithm)


def test_without_any_key_a_local_caller_is_admin() -> None:
    assert ask("/v1/settings", keys=NO_KEYS, base_url="http://127.0.0.1").json() == {"role": "admin"}


def test_without_any_key_a_public_address_lets_nobody_in() -> None:
    assert ask("/v1/settings", keys=NO_KEYS, base_url="http://10.1.2.3").status_code == 401


def test_once_a_key_exists_a_request_without_one_is_a_401_that_says_how() -> None:
    answer = ask("/v1/mine?visitor_id=v")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "X-API-Key" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [{"authorization": "Bearer sk_server_x"}, {"x-api-key": "sk_server_x"}])
def test_a_key_is_read_from_either_header(headers: dict[str, str]) -> None:
    assert ask("/v1/mine?user_id=a", headers=headers).json() == {"role": "server", "key_id": "key_server"}


@pytest.mark.parametrize("value", ["Basic abc", "Bearer ", "Bearer nonsense", "Bearer sk_client_\xff"])
def test_a_bad_credential_is_a_401(value: str) -> None:
    assert ask("/v1/mine?visitor_id=v", headers={"authorization": value}).status_code == 401


@pytest.mark.parametrize(("key", "status"), [("client", 403), ("server", 403), ("admin", 200)])
def test_a_role_opens_only_its_routes_and_admin_opens_all(key: str, status: int) -> None:
    assert ask("/v1/settings", key=key).status_code == status
    assert ask("/v1/mine?visitor_id=v", key=key).status_code == 200


def test_a_beacon_carries_its_key_in_the_body() -> None:
    options = {"method": "POST", "headers": {"content-type": "text/plain"}}
    assert ask("/v1/beacon", content=b'{"client_key":"sk_client_x"}', **options).json() == {"role": "client"}  # type: ignore[arg-type]
    assert ask("/v1/beacon", content=b'{"client_key":"sk_client_y"}', **options).status_code == 401  # type: ignore[arg-type]
    assert ask("/v1/beacon", content=b"{}", **options).status_code == 401  # type: ignore[arg-type]


def test_a_server_key_acts_for_anybody() -> None:
    assert ask("/v1/mine?user_id=ann", key="server").status_code == 200


def test_a_client_key_acts_for_a_user_with_the_token_of_that_user_only() -> None:
    def status(user: str, text: str | None) -> int:
        query = f"/v1/mine?user_id={user}" + (f"&user_token={text}" if text else "")
        return ask(query, key="client").status_code

    assert status("ann", token()) == 200
    assert status("bob", token()) == 403
    assert status("ann", None) == 403


@pytest.mark.parametrize(
    "text",
    [
        token(exp=time.time() - 3600),
        token(secret="another-secret-of-at-least-32-bytes!!!"),
        token(algorithm="HS512", secret=SECRET * 2),
        jwt.encode({"sub": "ann", "exp": time.time() + 60}, "", algorithm="none"),
        jwt.encode({"sub": "ann"}, SECRET, algorithm="HS256"),
        token(sub=["ann"]),
        "a.b.c",
        "\u00e9",
    ],
    ids=["expired", "foreign", "algorithm", "none", "endless", "list", "garbage", "not ascii"],
)
def test_a_token_that_does_not_hold_is_a_403(text: str) -> None:
    assert ask("/v1/mine", key="client", params={"user_id": "ann", "user_token": text}).status_code == 403


def test_without_a_token_secret_client_keys_may_send_no_user_id() -> None:
    answer = ask("/v1/mine", key="client", params={"user_id": "ann", "user_token": token()}, secret=None)
    assert answer.status_code == 403
    assert "auth.user_token_secret" in answer.json()["detail"]


def test_a_client_must_name_somebody() -> None:
    with pytest.raises(ValidationFailed):
        authorize_user(Principal("client", "k", "n"), None, None)


def test_a_user_id_beside_a_visitor_id_still_needs_its_token() -> None:
    with pytest.raises(Forbidden):
        authorize_user(Principal("client", "k", "n"), "ann", "v1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_without_keys_loopback_may_be_bound(host: str) -> None:
    check_binding(host, has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_without_keys_nothing_else_may_be_bound(host: str) -> None:
    with pytest.raises(ConfigurationError, match="silkrec keys create"):
        check_binding(host, has_keys=False)
    check_binding(host, has_keys=True)


def test_a_misspelt_role_stops_the_start() -> None:
    with pytest.raises(ValueError, match="servr"):
        require("servr")  # type: ignore[arg-type]
