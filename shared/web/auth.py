"""Who calls: API keys with roles, and the user tokens that let a browser act for a signed-in user.

Without any key in the database every request is admin, which is why the suite then binds loopback only.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import jwt
from fastapi import Request
from pydantic import SecretStr

from shared.errors import ConfigurationError, FieldError, Forbidden, Unauthenticated, ValidationFailed

Role = Literal["client", "server", "admin"]
ROLES: tuple[Role, ...] = ("client", "server", "admin")
CLOCK_SKEW_S = 30
# PyJWT warns, rightly, below the hash's own length (RFC 7518, 3.2).
SECRET_MIN_BYTES = 32
_HOW = "send `Authorization: Bearer <key>` or `X-API-Key: <key>`"


@dataclass(frozen=True, slots=True)
class Principal:
    """`key_id` is None without keys. `user_token_secret` travels here so that `authorize_user` needs no settings."""

    role: Role
    key_id: str | None
    name: str
    user_token_secret: SecretStr | None = field(default=None, repr=False, compare=False)


class FoundKey(Protocol):
    @property
    def key_id(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def name(self) -> str: ...


class Keys(Protocol):
    """What `request.state.keys` must be: shared.storage.keys.KeyCache."""

    def has_keys(self) -> bool:
        """Raises DatabaseUnavailable while nothing was ever read."""

    def find(self, text: str) -> FoundKey | None: ...


def require(*roles: Role) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: `principal: Annotated[Principal, Depends(require("server", "admin"))]`.

    An admin key may do whatever any role may. Raises Unauthenticated, Forbidden.
    """
    unknown = set(roles).difference(ROLES)
    if unknown or not roles:
        raise ValueError(f"roles are {', '.join(ROLES)}; got {', '.join(sorted(unknown)) or 'none'}")

    async def principal(request: Request) -> Principal:
        return authenticate_key(request, _key_of(request), *roles)

    return principal


def authenticate_key(request: Request, text: str | None, *roles: Role) -> Principal:
    """For a key that is not in a header (`client_key` of a sendBeacon body); headers win when both are sent."""
    keys: Keys = request.state.keys
    text = _key_of(request) or text
    secret = request.state.settings.auth.user_token_secret
    if not keys.has_keys():
        _refuse_open_door(request)
        return Principal("admin", None, "no keys are set up", secret)
    if text is None:
        raise Unauthenticated(f"no API key was sent; {_HOW}")
    found = keys.find(text)
    if found is None:
        raise Unauthenticated(f"the API key is unknown or revoked; {_HOW}")
    if found.role != "admin" and found.role not in roles:
        raise Forbidden(f"a {found.role} key may not do this; use a key with role {' or '.join(roles)}")
    return Principal(found.role, found.key_id, found.name, secret)


def _key_of(request: Request) -> str | None:
    bearer = request.headers.get("authorization")
    if bearer is not None:
        scheme, _, text = bearer.partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise Unauthenticated(f"the Authorization header is no bearer token; {_HOW}")
        return text.strip()
    return request.headers.get("x-api-key")


def authorize_user(
    principal: Principal, user_id: str | None, visitor_id: str | None, user_token: str | None = None
) -> None:
    """May this caller act for this user or visitor? Server and admin keys: for all. Client keys: for any visitor_id
    (it is the browser's own secret), and for a user_id with a token whose `sub` is that id. Raises Forbidden."""
    if principal.role != "client":
        return
    if user_id is None:
        if visitor_id is None:
            raise ValidationFailed(
                "user_id or visitor_id is needed", errors=[FieldError("/visitor_id", "user_id or visitor_id is needed")]
            )
        return
    if principal.user_token_secret is None:
        raise Forbidden("a client key may send no user_id here: auth.user_token_secret is not set; use visitor_id")
    if user_token is None:
        raise Forbidden("a client key needs the user_token of this user_id; the back end signs it (HS256, sub, exp)")
    subject = _subject(user_token, principal.user_token_secret)
    if not hmac.compare_digest(subject.encode(), user_id.encode()):
        raise Forbidden("the user_token was signed for another user_id")


def _subject(token: str, secret: SecretStr) -> str:
    key = secret.get_secret_value()
    if len(key.encode()) < SECRET_MIN_BYTES:
        raise ConfigurationError(f"auth.user_token_secret needs at least {SECRET_MIN_BYTES} bytes")
    try:
        claims = jwt.decode(
            token, key, algorithms=["HS256"], leeway=CLOCK_SKEW_S,
            options={"require": ["sub", "exp"], "verify_aud": False},
        )  # fmt: skip
    except jwt.ExpiredSignatureError:
        raise Forbidden("the user_token has expired; ask the back end for a new one") from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise Forbidden("the user_token is not valid: it must be HS256 with the claims sub and exp") from None
    return str(claims["sub"])


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(host: str, has_keys: bool) -> None:
    """Before a service binds. Raises ConfigurationError for an address that others reach while no key exists."""
    if not has_keys and not is_loopback(host):
        raise ConfigurationError(
            f"without API keys SilkRec serves this machine only, and {host} is reached from others: "
            "make a key with `silkrec keys create server`, or bind 127.0.0.1"
        )


def _refuse_open_door(request: Request) -> None:
    """The keys may have gone (a restored database) after a public address was bound."""
    server = request.scope.get("server")
    if server is None or not server[0]:
        return
    try:
        address = ipaddress.ip_address(server[0])
    except ValueError:
        return  # a Unix socket, or the name that an in-process test client gives
    if not address.is_loopback:
        raise Unauthenticated("this address is public and no API key exists; make one with `silkrec keys create`")
