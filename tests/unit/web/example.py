"""A small service made with create_app, and fakes for what its state holds."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, SecretStr

from shared.errors import (
    ArtifactError,
    DatabaseUnavailable,
    FieldError,
    FilterInvalid,
    Overloaded,
    SilkrecError,
)
from shared.observability.metrics import Metrics
from shared.settings.roots import AuthSettings, Settings
from shared.web.app import create_app
from shared.web.auth import Principal, Role, authenticate_key, authorize_user, require
from shared.web.health import Readiness
from shared.web.json import parse
from shared.web.middleware import BodyLimit

SECRET = "a-secret-of-at-least-thirty-two-bytes!"


@dataclass(frozen=True)
class Key:
    key_id: str
    role: Role
    name: str


@dataclass
class FakeKeys:
    keys: Mapping[str, Key]

    def has_keys(self) -> bool:
        return bool(self.keys)

    def find(self, text: str) -> Key | None:
        return self.keys.get(text)


KEYS = FakeKeys({f"sk_{role}_x": Key(f"key_{role}", role, role) for role in ("client", "server", "admin")})
NO_KEYS = FakeKeys({})


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    value: float | list[int] = 0


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rows: list[Row] = []
    properties: dict[str, Any] = {}


ERRORS: dict[str, SilkrecError] = {
    "filter": FilterInvalid("no such field", errors=[FieldError("/filter", "no such field", position=7)]),
    "database": DatabaseUnavailable("down", retry_after_s=2.2),
    "overloaded": Overloaded("full"),
    "artifact": ArtifactError("/secret/path is damaged"),
}


def router() -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.post("/echo")
    async def echo(body: Body) -> Body:
        return body

    @routes.get("/items/{item_id}")
    async def item(item_id: str, limit: Annotated[int, Query(ge=1)] = 1) -> dict[str, Any]:
        return {"item_id": item_id, "limit": limit}

    @routes.get("/errors/{name}")
    async def errors(name: str) -> dict[str, Any]:
        if name not in ERRORS:
            raise RuntimeError("a private detail")
        raise ERRORS[name]

    @routes.get("/mine")
    async def mine(
        principal: Annotated[Principal, Depends(require("client", "server"))],
        user_id: str | None = None,
        visitor_id: str | None = None,
        user_token: str | None = None,
    ) -> dict[str, Any]:
        authorize_user(principal, user_id, visitor_id, user_token)
        return {"role": principal.role, "key_id": principal.key_id}

    @routes.get("/settings")
    async def settings(principal: Annotated[Principal, Depends(require("admin"))]) -> dict[str, Any]:
        return {"role": principal.role}

    @routes.post("/beacon")
    async def beacon(request: Request) -> dict[str, Any]:
        body = parse(await request.body())
        return {"role": authenticate_key(request, body.get("client_key"), "client").role}

    @routes.get("/half")
    async def half() -> Response:
        return _Half()

    return routes


class _Half(Response):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle of an answer")


def build(
    *,
    keys: FakeKeys = NO_KEYS,
    ready: bool = True,
    limit: BodyLimit = 4096,
    origins: tuple[str, ...] = (),
    secret: str | None = SECRET,
) -> FastAPI:
    auth = AuthSettings(cors_origins=origins, user_token_secret=SecretStr(secret) if secret else None)
    settings = Settings(auth=auth)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield {"keys": keys, "settings": settings}

    app = create_app(
        title="example",
        lifespan=lifespan,
        settings=settings,
        service="example",
        metrics=Metrics("example"),
        max_body_bytes=limit,
        ready=lambda: Readiness(ready, {"redis": "down"}),
    )
    app.include_router(router())
    return app
