"""Asks the inference service to drop what it holds of a user."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from shared.errors import InferenceUnavailable
from shared.settings.roots import InferenceSettings

TIMEOUT_S = 1.0


class LatentsDoor:
    """`DELETE /v1/latents/{user_key}` of the inference service's REST door."""

    def __init__(self, base_url: str, *, key: str = "", client: httpx.AsyncClient | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = client or httpx.AsyncClient(timeout=TIMEOUT_S)

    @classmethod
    def of(cls, settings: InferenceSettings, key: SecretStr | None = None) -> LatentsDoor:
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
        base_url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
        return cls(base_url, key="" if key is None else key.get_secret_value())

    async def delete(self, user_key: str) -> dict[str, Any]:
        """A receipt. Raises InferenceUnavailable when a running service did not confirm: then ask again."""
        try:
            answer = await self._client.delete(
                f"{self._base_url}/v1/latents/{quote(user_key, safe='')}", headers=self._headers
            )
        except httpx.ConnectError:
            return {"state": "not_kept", "note": "the inference service does not run; latents live in its memory only"}
        except httpx.HTTPError as error:
            raise InferenceUnavailable(
                f"the inference service at {self._base_url} did not confirm that latents are gone "
                f"({type(error).__name__})"
            ) from error
        if answer.is_success:
            return {"state": "done", "note": "the inference service confirmed"}
        raise InferenceUnavailable(
            f"the inference service at {self._base_url} answered {answer.status_code} to the deletion of latents; "
            "with API keys, recommender.inference_key must be a server key"
        )

    async def close(self) -> None:
        await self._client.aclose()
