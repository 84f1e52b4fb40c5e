"""A session: who, which role, until when. The cookie is the session itself, signed; no store holds it.

`base64url(json) "." base64url(HMAC-SHA256)`. Readable by its owner, changeable by nobody. It carries the id of the
key it was made with, so that revoking the key ends it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum

import orjson

_FORMAT = 1
_MAX_COOKIE = 2048


class Access(StrEnum):
    """An editor may also start, stop and ship."""

    VIEWER = "viewer"
    EDITOR = "editor"


class Way(StrEnum):
    KEY = "key"
    PROXY = "proxy"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`nonce` binds form tokens to this browser. `expires_s`: Unix time."""

    name: str
    access: Access
    way: Way
    nonce: str
    key_id: str = ""
    expires_s: float = 0.0

    @property
    def may_edit(self) -> bool:
        return self.access is Access.EDITOR

    @property
    def actor(self) -> str:
        """For the audit log."""
        return "local" if self.way is Way.LOCAL else f"{self.way}:{self.name}"[:128]


def new_nonce() -> str:
    return secrets.token_urlsafe(18)


def write(session: Session, secret: bytes) -> str:
    fields = [_FORMAT, session.name, session.access, session.key_id, session.nonce, session.expires_s]
    payload = _encode(orjson.dumps(fields))
    return f"{payload}.{signature(secret, 'session', payload)}"


def read(cookie: str, secret: bytes, now_s: float) -> Session | None:
    """None for one that is forged, damaged, of another format or over."""
    payload, _, signed = cookie.partition(".")
    if len(cookie) > _MAX_COOKIE or not cookie.isascii():
        return None
    if not hmac.compare_digest(signed, signature(secret, "session", payload)):
        return None
    try:
        version, *fields = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError):
        return None
    if version != _FORMAT:
        return None
    name, access, key_id, nonce, expires_s = fields
    if now_s >= expires_s:
        return None
    return Session(
        name=name, access=Access(access), way=Way.KEY, nonce=nonce, key_id=key_id, expires_s=float(expires_s)
    )


def signature(secret: bytes, purpose: str, text: str) -> str:
    """`purpose` keeps a form token from ever passing as a session."""
    return _encode(hmac.new(secret, f"{purpose}\n{text}".encode(), hashlib.sha256).digest())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
