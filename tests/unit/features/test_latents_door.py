"""What a deletion's receipt says of latents: confirmed, not kept because nothing runs, or asked again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from services.features.users.latents import LatentsDoor
from shared.contracts.inference import Forgotten
from shared.errors import InferenceUnavailable


@dataclass
class Engines:
    """Answer with `told`, or do not confirm when there is none."""

    told: Forgotten | None
    asked: list[str] = field(default_factory=list)
    closed: bool = False

    async def forget(self, user_key: str) -> Forgotten:
        self.asked.append(user_key)
        if self.told is None:
            raise InferenceUnavailable("an engine answered UNAUTHENTICATED")
        return self.told

    async def close(self) -> None:
        self.closed = True


def delete(engines: Engines) -> dict[str, object]:
    async def scenario() -> dict[str, object]:
        door = LatentsDoor(engines)
        try:
            return await door.delete("u:a b")
        finally:
            await door.close()

    return asyncio.run(scenario())


def test_a_confirmed_deletion_is_done() -> None:
    engines = Engines(Forgotten(confirmed=2, not_running=0))
    told = delete(engines)
    assert (told["state"], told["engines"], told["note"]) == ("done", 2, "2 of 2 engines confirmed")
    assert (engines.asked, engines.closed) == (["u:a b"], True)


def test_an_engine_that_does_not_run_is_named_beside_those_that_confirmed() -> None:
    told = delete(Engines(Forgotten(confirmed=1, not_running=1)))
    assert told["state"] == "done"
    assert str(told["note"]).startswith("1 of 2 engines confirmed; the others do not run")


def test_engines_that_do_not_run_keep_nothing() -> None:
    assert delete(Engines(Forgotten(confirmed=0, not_running=2)))["state"] == "not_kept"


def test_an_engine_that_runs_and_does_not_confirm_is_asked_again() -> None:
    with pytest.raises(InferenceUnavailable, match="UNAUTHENTICATED"):
        delete(Engines(None))
