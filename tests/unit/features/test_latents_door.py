"""What a deletion's receipt says of latents: confirmed, not kept because nothing runs, or asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from services.features.users.latents import LatentsDoor
from shared.errors import InferenceUnavailable

Answer = Callable[[httpx.Request], httpx.Response]


def delete(answer: Answer, *, key: str = "") -> dict[str, object]:
    async def scenario() -> dict[str, object]:
        client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        door = LatentsDoor("http://inference", key=key, client=client)
        try:
            return await door.delete("u:a b")
        finally:
            await door.close()

    return asyncio.run(scenario())


def test_a_confirmed_deletion_is_done_and_shows_the_key() -> None:
    seen: list[httpx.Request] = []

    def confirm(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    assert delete(confirm, key="secret")["state"] == "done"
    assert seen[0].url.raw_path == b"/v1/latents/u%3Aa%20b"
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_a_service_that_does_not_run_keeps_nothing() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody listens", request=request)

    assert delete(refuse)["state"] == "not_kept"


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_service_that_runs_and_does_not_confirm_is_asked_again(status: int) -> None:
    with pytest.raises(InferenceUnavailable, match=str(status)):
        delete(lambda _: httpx.Response(status))


def test_a_service_that_hangs_is_asked_again() -> None:
    def hang(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("no answer", request=request)

    with pytest.raises(InferenceUnavailable, match="ReadTimeout"):
        delete(hang)
