"""What the vendors' group robots want to be sent, and what their answers mean. Pure.

DingTalk: https://open.dingtalk.com/document/robots/custom-robot-access and …/customize-robot-security-settings
WeCom: https://developer.work.weixin.qq.com/document/path/91770
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from pydantic import SecretStr

from services.alerts.message import Message


class Verdict(StrEnum):
    TAKEN = "taken"
    AGAIN = "again"
    """Busy or too many; worth another try."""
    REFUSED = "refused"
    """Another try would be refused as well: a wrong token, signature, keyword or format."""


class Robot(Protocol):
    """`per_minute`: messages that the vendor takes."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def per_minute(self) -> int: ...

    def parameters(self, now_s: float) -> Mapping[str, str]:
        """Of the query, secrets among them: never log these."""

    def body(self, message: Message) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class DingTalk:
    """`secret` None: the robot is protected by a keyword or by addresses instead of a signature."""

    url: str
    access_token: SecretStr
    secret: SecretStr | None = None
    call_all: bool = False
    name: str = field(default="dingtalk", init=False)
    per_minute: int = field(default=20, init=False)
    text_bytes: int = field(default=20_000, init=False)

    def parameters(self, now_s: float) -> Mapping[str, str]:
        token = {"access_token": self.access_token.get_secret_value()}
        if self.secret is None:
            return token
        timestamp = str(round(now_s * 1000))
        return {**token, "timestamp": timestamp, "sign": dingtalk_sign(timestamp, self.secret.get_secret_value())}

    def body(self, message: Message) -> Mapping[str, Any]:
        return {
            "msgtype": "markdown",
            "markdown": {"title": message.title, "text": message.fitted(self.text_bytes)},
            "at": {"isAtAll": self.call_all and message.urgent},
        }


def dingtalk_sign(timestamp: str, secret: str) -> str:
    """Base64, not yet percent-encoded: whoever builds the query does that."""
    digest = hmac.new(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class WeCom:
    url: str
    key: SecretStr
    name: str = field(default="wecom", init=False)
    per_minute: int = field(default=20, init=False)
    text_bytes: int = field(default=4096, init=False)

    def parameters(self, now_s: float) -> Mapping[str, str]:  # noqa: ARG002
        return {"key": self.key.get_secret_value()}

    def body(self, message: Message) -> Mapping[str, Any]:
        return {"msgtype": "markdown", "markdown": {"content": message.fitted(self.text_bytes)}}


# DingTalk: -1 busy, 130101 too fast. WeCom: -1 busy, 45009 and 45033 too fast.
_AGAIN = frozenset((-1, 130101, 45009, 45033))


def verdict(status: int, answer: Any) -> tuple[Verdict, str]:
    """Both vendors say `errcode` in a 200. With the vendor's words for the log; they hold no secret of ours."""
    if status == 429 or status >= 500:
        return Verdict.AGAIN, f"status {status}"
    if status != 200 or not isinstance(answer, Mapping) or not isinstance(answer.get("errcode"), int):
        return Verdict.REFUSED, f"status {status} and no errcode"
    code = answer["errcode"]
    if code == 0:
        return Verdict.TAKEN, ""
    return (Verdict.AGAIN if code in _AGAIN else Verdict.REFUSED), f"errcode {code}: {str(answer.get('errmsg'))[:200]}"
