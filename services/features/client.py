"""How others write features over HTTP: `FeaturesClient`. It knows the wire only; no service stands behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import httpx
import orjson

from shared.errors import ClientError, DeadlineExceeded, DependencyError, FieldError, SilkrecError

CONNECT_TIMEOUT_S = 1.0
READ_TIMEOUT_S = 2.0
# A bulk call of 500 rows waits for its group commit; under load that is longer than a single row's.
WRITE_TIMEOUT_S = 10.0
Json = dict[str, Any]


class FeaturesUnavailable(DependencyError):
    """The features service gave no answer, or one that is not its own. The write may have happened: retry it."""

    code = "features_unavailable"
    title = "The features service is unavailable"


class FeaturesClient:
    """Retries nothing by itself: events carry an event_id and a PUT is a PUT, so the caller may repeat either."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key is not None else {}
        self._reading = httpx.Timeout(read_timeout_s, connect=connect_timeout_s)
        self._writing = httpx.Timeout(write_timeout_s, connect=connect_timeout_s)
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=self._reading, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send_events(self, events: Sequence[Mapping[str, Any]], *, sent_at: str | None = None) -> Json:
        """`{accepted, duplicates, rejected}`; at most 500 events."""
        body: Json = {"events": list(events)}
        return await self._write("POST", "/v1/events", body if sent_at is None else {**body, "sent_at": sent_at})

    async def put_item(self, item_id: str, item: Mapping[str, Any]) -> Json:
        return await self._write("PUT", f"/v1/items/{_path(item_id)}", item)

    async def patch_item(self, item_id: str, changes: Mapping[str, Any]) -> Json:
        return await self._write("PATCH", f"/v1/items/{_path(item_id)}", changes)

    async def put_items(self, items: Sequence[Mapping[str, Any]]) -> Json:
        """`{accepted, rejected}`; at most 500 items."""
        return await self._write("POST", "/v1/items", {"items": list(items)})

    async def get_item(self, item_id: str) -> Json:
        return await self._read("GET", f"/v1/items/{_path(item_id)}")

    async def delete_item(self, item_id: str) -> None:
        await self._write("DELETE", f"/v1/items/{_path(item_id)}")

    async def put_user(self, user_id: str, user: Mapping[str, Any]) -> Json:
        return await self._write("PUT", f"/v1/users/{_path(user_id)}", user)

    async def patch_user(self, user_id: str, changes: Mapping[str, Any]) -> Json:
        return await self._write("PATCH", f"/v1/users/{_path(user_id)}", changes)

    async def put_users(self, users: Sequence[Mapping[str, Any]]) -> Json:
        """`{accepted, rejected}`; at most 500 users."""
        return await self._write("POST", "/v1/users", {"users": list(users)})

    async def get_user(self, user_id: str) -> Json:
        return await self._read("GET", f"/v1/users/{_path(user_id)}")

    async def merge_users(self, *, visitor_id: str, user_id: str) -> Json:
        return await self._write("POST", "/v1/users:merge", {"visitor_id": visitor_id, "user_id": user_id})

    async def delete_user(self, user_id: str) -> str:
        """The deletion_id."""
        return str((await self._write("DELETE", f"/v1/users/{_path(user_id)}"))["deletion_id"])

    async def get_deletion(self, deletion_id: str) -> Json:
        return await self._read("GET", f"/v1/deletions/{_path(deletion_id)}")

    async def _read(self, method: str, path: str) -> Json:
        return await self._call(method, path, None, self._reading)

    async def _write(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        return await self._call(method, path, body, self._writing)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: httpx.Timeout) -> Json:
        content = orjson.dumps(body) if body is not None else None
        headers = {"content-type": "application/json"} if content is not None else {}
        try:
            answer = await self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(
                f"the features service did not answer {method} {path.split('/')[2]} in time"
            ) from error
        except httpx.HTTPError as error:
            raise FeaturesUnavailable(f"the features service cannot be reached: {type(error).__name__}") from error
        if answer.is_success:
            return _json(answer) if answer.content else {}
        raise _problem(answer)


def _path(value: str) -> str:
    return quote(value, safe="")


def _json(answer: httpx.Response) -> Json:
    try:
        value = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        raise FeaturesUnavailable(f"the features service answered {answer.status_code} without JSON") from None
    return value if isinstance(value, dict) else {"value": value}


def _problem(answer: httpx.Response) -> SilkrecError:
    """The error of the tree with the problem's `code`; unknown codes become what their status says."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return FeaturesUnavailable(f"something before the features service answered {answer.status_code}")
    body = _json(answer)
    kinds = {kind.code: kind for kind in _descendants(SilkrecError)}
    by_status = ClientError if answer.status_code < 500 else FeaturesUnavailable
    kind = kinds.get(str(body.get("code")), by_status)
    wait = answer.headers.get("retry-after", "")
    faults = [
        FieldError(str(row.get("pointer", "")), str(row.get("message", "")), str(row.get("code", "invalid")))
        for row in body.get("errors", [])
        if isinstance(row, dict)
    ]
    retry_after_s = float(wait) if wait.isdigit() else None
    return kind(str(body.get("detail", "")), errors=faults, retry_after_s=retry_after_s)


def _descendants(kind: type[SilkrecError]) -> Iterator[type[SilkrecError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)
