"""What the demo shows of the suite's answers: tables of slates, histories and lists, as rich renderables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from shared.errors import SilkrecError

TIMEOUT_S = 30.0
SHOWN = 10
RECENT = 5


class Api:
    """The suite's public URL, as a back end would call it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        self._titles: dict[str, str] = {}

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Raises SilkrecError with the problem's own words."""
        answer = self._http.request(method, path, **options)
        if answer.status_code >= httpx.codes.BAD_REQUEST:
            raise SilkrecError(f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer

    def recommend(self, user_id: str, **options: Any) -> dict[str, Any]:
        body = {"user_id": user_id, "count": SHOWN, "return_properties": ["title"], **options}
        slate: dict[str, Any] = self.ask("POST", "/v1/recommend", json=body).json()
        return slate

    def listed(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Items of /v1/popular or /v1/items/{id}/similar."""
        answer = self.ask("GET", path, params={"return_properties": "title", **query}).json()
        rows: list[dict[str, Any]] = answer["items"]
        return rows

    def send(self, events: Sequence[dict[str, Any]]) -> None:
        answer = self.ask("POST", "/v1/events", json={"events": list(events)}).json()
        if answer["rejected"]:
            raise SilkrecError(f"POST /v1/events rejected {answer['rejected'][0]}")

    def recent(self, user_id: str, count: int = RECENT) -> list[dict[str, Any]]:
        """The newest events of a user, newest first."""
        lines = self.ask("GET", f"/v1/users/{user_id}/export").text.splitlines()
        events = [row for row in map(json.loads, lines) if row["kind"] == "event"]
        return events[::-1][:count]

    def title(self, item_id: str) -> str:
        if item_id not in self._titles:
            found = self.ask("GET", f"/v1/items/{item_id}").json()
            self._titles[item_id] = found.get("title") or item_id
        return self._titles[item_id]


def show_user(console: Console, api: Api, user_id: str) -> dict[str, Any]:
    """Recent titles beside the slate; returns the slate."""
    recent = ", ".join(f"{api.title(row['item_id'])} ({row['event_value']:g})" for row in api.recent(user_id))
    slate = api.recommend(user_id)
    console.print(f"[bold]User {user_id}[/bold], newest ratings first: {recent}")
    show_slate(console, slate)
    return slate


def show_slate(console: Console, slate: dict[str, Any], *, before: Sequence[str] = ()) -> None:
    """`before`: item ids of the slate before; what is new is marked."""
    table = Table("#", "Title", "Sources", "Score", *(["New"] if before else []))
    for item in slate["items"]:
        marks = ["" if item["item_id"] in before else "new"] if before else []
        title = str(item["properties"].get("title") or item["item_id"])
        table.add_row(str(item["position"]), title, ", ".join(item["retrieve_ids"]), f"{item['score']:.3f}", *marks)
    console.print(table)
    degraded = "".join(f"; gave up {row['stage']} ({row['cause']})" for row in slate["degraded_stages"])
    console.print(f"  {slate['took_ms']:.1f} ms, release {slate['release'] or 'none yet'}{degraded}", style="dim")


def show_list(console: Console, heading: str, rows: Sequence[dict[str, Any]]) -> None:
    titles = ", ".join(str(row["properties"].get("title") or row["item_id"]) for row in rows)
    console.print(f"[bold]{heading}[/bold]: {titles}")
