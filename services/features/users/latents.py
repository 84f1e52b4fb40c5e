"""Asks every engine to drop what it holds of a user."""

from __future__ import annotations

from typing import Any, Protocol

from shared.contracts.inference import Forgotten

_NOBODY = (
    "no engine is reached from here; latents live in an engine's memory only, and one that runs elsewhere forgets by "
    "itself within seconds, as it follows deletions in the database"
)


class Engines(Protocol):
    """The part of `services.inference.client.EngineControl` that is needed."""

    async def forget(self, user_key: str) -> Forgotten: ...

    async def close(self) -> None: ...


class LatentsDoor:
    """Owns `engines` from now on."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    async def delete(self, user_key: str) -> dict[str, Any]:
        """A receipt. Raises InferenceUnavailable when an engine that runs did not confirm: then ask again."""
        told = await self._engines.forget(user_key)
        if not told.confirmed:
            return {"state": "not_kept", "note": _NOBODY}
        note = f"{told.confirmed} of {told.confirmed + told.not_running} engines confirmed"
        if told.not_running:
            note += "; the others do not run, and latents live in an engine's memory only"
        return {"state": "done", "engines": told.confirmed, "note": note}

    async def close(self) -> None:
        await self._engines.close()
