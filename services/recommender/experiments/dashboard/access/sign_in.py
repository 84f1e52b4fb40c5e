"""From a request to a session, and from a key to one."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request

from services.recommender.experiments.dashboard.access import sessions
from services.recommender.experiments.dashboard.access.sessions import Access, Session, Way
from shared.errors import Forbidden
from shared.settings.roots import DashboardSettings
from shared.web.auth import FoundKey, Keys, authenticate_key, is_loopback

SESSION_COOKIE = "silkrec_dashboard"
NONCE_COOKIE = "silkrec_dashboard_form"
MAX_NAME = 120
# A server key reads slates and histories already; experiments are changed by admin keys alone.
_ACCESS = {"admin": Access.EDITOR, "server": Access.VIEWER}


class SessionKeys(Keys, Protocol):
    """`request.state.keys` (shared.storage.keys.KeyCache), which can also tell whether a key still holds."""

    def is_valid(self, key_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class SignIn:
    """`secret` of `access.secret`."""

    settings: DashboardSettings
    secret: bytes = field(repr=False)

    def session(self, request: Request, now_s: float) -> Session | None:
        """None: sign in first. Raises Forbidden where signing in would not help."""
        nonce = request.cookies.get(NONCE_COOKIE, "")
        if self.settings.proxy_user_header and (named := self._by_proxy(request, nonce)) is not None:
            return named
        keys: SessionKeys = request.state.keys
        if not keys.has_keys():
            return None if self.settings.proxy_user_header else _local(request, nonce)
        found = sessions.read(request.cookies.get(SESSION_COOKIE, ""), self.secret, now_s)
        return found if found is not None and keys.is_valid(found.key_id) else None

    def by_key(self, request: Request, text: str, now_s: float) -> Session | None:
        """None for a key that is unknown or revoked, or may not look at experiments."""
        keys: Keys = request.state.keys
        found: FoundKey | None = keys.find(text.strip())
        access = None if found is None else _ACCESS.get(found.role)
        if found is None or access is None:
            return None
        return Session(
            name=found.name[:MAX_NAME],
            access=access,
            way=Way.KEY,
            nonce=sessions.new_nonce(),
            key_id=found.key_id,
            expires_s=now_s + self.settings.session_ttl_s,
        )

    def _by_proxy(self, request: Request, nonce: str) -> Session | None:
        """None without the header, or when whoever sent it is no proxy of ours: then it is only text."""
        names = request.headers.getlist(self.settings.proxy_user_header)
        if not names or not self._is_trusted(request):
            return None
        name = names[0].strip()
        if len(names) > 1 or not name or len(name) > MAX_NAME or not name.isprintable():
            raise Forbidden(f"the proxy must send one name in {self.settings.proxy_user_header}")
        return Session(name=name, access=self._proxy_access(request), way=Way.PROXY, nonce=nonce)

    def _proxy_access(self, request: Request) -> Access:
        header = self.settings.proxy_role_header
        if not header:
            return Access.VIEWER
        roles = [role.strip().lower() for role in request.headers.getlist(header)]
        if len(roles) != 1 or roles[0] not in list(Access):
            raise Forbidden(f"the proxy must send viewer or editor in {header}; ask whoever runs it for a role")
        return Access(roles[0])

    def _is_trusted(self, request: Request) -> bool:
        """By the socket's peer; `serve` keeps uvicorn from replacing it by what X-Forwarded-For claims."""
        try:
            peer = ipaddress.ip_address(request.client.host if request.client else "")
        except ValueError:
            return False
        return any(peer in network for network in self.settings.trusted_proxies)


def _local(request: Request, nonce: str) -> Session:
    """While no keys exist. The Host is checked, for a page elsewhere may point its own name at this machine."""
    authenticate_key(request, None, "admin")  # refuses when the address turned public
    host = request.url.hostname or ""
    if not is_loopback(host):
        raise Forbidden(
            f"without API keys the dashboard answers to localhost only, and this was sent to {host[:80]!a}; "
            "make a key with `silkrec keys create admin`"
        )
    return Session(name="local", access=Access.EDITOR, way=Way.LOCAL, nonce=nonce)
