"""The vendors' servers as far as their documents say: they check token, signature and schema, and refuse when told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from typing import Any
from urllib.parse import parse_qs, quote_plus, unquote_plus

from fastapi import FastAPI, Request, Response

TOKEN, SECRET, KEY = "dingtalk-token-1f0a", "SECfe2c3a9d", "wecom-key-77c1"


class Robots:
    """`told` gets (vendor, text) of what was accepted; `answers` are given first, one a call, unlooked at. `broken`: so
    many of DingTalk's next calls meet a server that fails."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.calls = self.broken = 0
        self.answers: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        self.heard = threading.Condition()

    def wait(self, count: int, timeout_s: float) -> list[tuple[str, str]]:
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.told) >= count, timeout_s), f"told so far: {self.told}"
            return list(self.told)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/robot/send")
        async def dingtalk(request: Request) -> Any:
            if self.broken:
                self.broken -= 1
                return Response("upstream connect error", status_code=500)
            return self._answer("dingtalk", dingtalk_fault(request.url.query), await request.json())

        @app.post("/cgi-bin/webhook/send")
        async def wecom(request: Request) -> dict[str, Any]:
            fault = None if parse_qs(request.url.query) == {"key": [KEY]} else (93000, "invalid webhook url")
            return self._answer("wecom", fault, await request.json())

        return app

    def _answer(self, vendor: str, fault: tuple[int, str] | None, body: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.answers:
            return self.answers.pop(0)
        fault = fault or _schema_fault(vendor, body)
        if fault is not None:
            return {"errcode": fault[0], "errmsg": fault[1]}
        text = body["markdown"]["text" if vendor == "dingtalk" else "content"]
        with self.heard:
            self.bodies.append(body)
            self.told.append((vendor, text))
            self.heard.notify_all()
        return {"errcode": 0, "errmsg": "ok"}


def dingtalk_fault(query: str) -> tuple[int, str] | None:
    """Works on the raw query, as a signature that was encoded twice must not pass."""
    sent = dict(part.split("=", 1) for part in query.split("&"))
    if sent.get("access_token") != TOKEN:
        return 300001, "token is not exist"
    timestamp = sent.get("timestamp", "0")
    if abs(time.time() * 1000 - int(timestamp)) > 3_600_000:
        return 310000, "invalid timestamp"
    digest = hmac.new(SECRET.encode(), f"{timestamp}\n{SECRET}".encode(), hashlib.sha256).digest()
    expected = quote_plus(base64.b64encode(digest))  # the vendor's own example
    if unquote_plus(sent.get("sign", "")) != unquote_plus(expected):
        return 310000, "sign not match"
    return None


def _schema_fault(vendor: str, body: dict[str, Any]) -> tuple[int, str] | None:
    if body.get("msgtype") != "markdown" or not isinstance(body.get("markdown"), dict):
        return 40008, "invalid message type"
    words = body["markdown"]
    if vendor == "dingtalk":
        fine = set(words) == {"title", "text"} and all(isinstance(w, str) and w for w in words.values())
        fine = fine and len(words["text"].encode()) <= 20_000 and isinstance(body["at"]["isAtAll"], bool)
        return None if fine else (400105, "invalid markdown")
    if set(words) != {"content"} or not words["content"] or len(words["content"].encode()) > 4096:
        return 40058, "markdown.content exceed max length 4096"
    return None
