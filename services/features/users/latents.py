"""Asks the inference service to drop what it holds of a user."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx

from shared.settings.roots import InferenceSettings

TIMEOUT_S = 1.0
_NONE_KEPT = "this inference build keeps no latents of a user between requests"


class LatentsDoor:
    """`DELETE /v1/latents/{user_key}` of the inference service's REST door, where that build has one."""

    def __init__(self, base_url: str, *, client: httpx.AsyncClient | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._client = client or httpx.AsyncClient(timeout=TIMEOUT_S)

    @classmethod
    def of(cls, settings: InferenceSettings) -> LatentsDoor:
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
        return cls(f"http://{f'[{host}]' if ':' in host else host}:{settings.port}")

    async def delete(self, user_key: str) -> dict[str, Any]:
        """A receipt. `not_kept` is what is true of a build without the route, and says how it was found out."""
        try:
            answer = await self._client.delete(f"{self._base_url}/v1/latents/{quote(user_key, safe='')}")
        except httpx.HTTPError as error:
            return {"state": "not_kept", "note": f"{_NONE_KEPT}; its REST door gave no answer ({type(error).__name__})"}
        if answer.is_success:
            return {"state": "done", "note": "the inference service confirmed"}
        return {"state": "not_kept", "note": f"{_NONE_KEPT}; its REST door answered {answer.status_code}"}

    async def close(self) -> None:
        await self._client.aclose()
