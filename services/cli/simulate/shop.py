"""The suite's public API as a simulated front end calls it, and its refusals in words that help."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from services.recommender.experiments.simulator.clicks import Bools, Item
from shared.errors import SilkrecError, ValidationFailed

EVENT_TYPES = ("impression", "click", "purchase")
MARK = {"silkrec_simulated": True}
"""In the context of every request; its exposures and the pages they feed are labelled by it."""
NO_PRICE = 1.0
_TURNED_AWAY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class Shop:
    """`http` has the base URL, the key and the time-outs, and is closed by its owner."""

    def __init__(self, http: httpx.AsyncClient, *, scene: str, count: int) -> None:
        self._http, self._scene, self._count = http, scene, count

    async def recommend(self, user_id: str) -> dict[str, Any] | None:
        """The answer; None when the suite turned the request away. Raises SilkrecError."""
        body = {
            "user_id": user_id,
            "scene": self._scene,
            "count": self._count,
            "context": MARK,
            "return_properties": ["categories", "price"],
        }
        answer = await self._post("/v1/recommend", body)
        return None if answer is None else dict(answer.json())

    async def send(self, events: Sequence[dict[str, Any]]) -> bool:
        """False when the suite turned them away. Raises SilkrecError."""
        answer = await self._post("/v1/events", {"events": list(events)})
        if answer is None:
            return False
        for rejected in answer.json()["rejected"]:
            message = f"POST /v1/events rejected an event: {rejected['message']}"
            if rejected["code"] == "unknown_event_type":
                message += f"; the simulator needs {', '.join(EVENT_TYPES)} under event_types in silkrec.yaml"
            raise ValidationFailed(message)
        return True

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response | None:
        try:
            answer = await self._http.post(path, json=body)
        except httpx.ConnectError:
            raise SilkrecError(
                f"nothing answers at {self._http.base_url}; start the suite with `silkrec serve all` or `silkrec "
                "demo`, or name its address with --url"
            ) from None
        except httpx.TimeoutException:
            return None
        except httpx.HTTPError as error:
            raise SilkrecError(f"POST {path} at {self._http.base_url} failed: {error}") from None
        if answer.status_code in _TURNED_AWAY:
            return None
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ValidationFailed(
                f"{self._http.base_url} wants a server key; make one by `silkrec keys create` and give it as --key"
            )
        if answer.is_error:
            raise SilkrecError(f"POST {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer


def items_of(answer: dict[str, Any]) -> tuple[Item, ...]:
    return tuple(
        Item(row["item_id"], frozenset((row.get("properties") or {}).get("categories") or ()))
        for row in answer["items"]
    )


def events_of(user_id: str, answer: dict[str, Any], clicked: Bools, purchased: Bools) -> list[dict[str, Any]]:
    """One impression with all items, then clicks and purchases, dated now: exposures are dated by the serving, and an
    event before its exposure would not count. Ids come from the slate's, so that sending again changes nothing."""
    slate, items = answer["recommendation_id"], answer["items"]
    common = {
        "user_id": user_id,
        "recommendation_id": slate,
        "occurred_at": datetime.now(UTC).isoformat(),
        "properties": {"simulated": True},
    }
    seen = [row["item_id"] for row in items]
    events = [{**common, "event_id": f"{slate}-impression", "event_type": "impression", "impression": seen}]
    for kind, happened in (("click", clicked), ("purchase", purchased)):
        for place in happened.nonzero()[0].tolist():
            row = items[place]
            event = {
                **common,
                "event_id": f"{slate}-{kind}-{place}",
                "event_type": kind,
                "item_id": row["item_id"],
                "position": place,
            }
            if kind == "purchase":
                event["event_value"] = float((row.get("properties") or {}).get("price") or NO_PRICE)
            events.append(event)
    return events
