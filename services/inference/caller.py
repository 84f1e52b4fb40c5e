"""Who may ask over gRPC. The Unix socket lies in a folder of this user's own; TCP is held to what REST asks for: a
server key, or this machine alone while no key exists."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from shared.errors import Forbidden, Unauthenticated
from shared.web.auth import Keys, is_loopback

_ROLES = ("server", "admin")
_HOW = "send the metadata `authorization: Bearer <key>` (recommender.inference_key)"


class CallerCheck:
    """`keys` as REST has them (`KeyCache`)."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def check(self, peer: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """`peer` as gRPC names it: `unix:…`, `ipv4:host:port`, `ipv6:[host]:port`, percent-encoded. Raises
        Unauthenticated, Forbidden, and DatabaseUnavailable while the keys were never read."""
        if peer.startswith("unix:"):
            return
        if not self._keys.has_keys():
            # The keys may have gone (a restored database) after a public address was bound.
            if not is_loopback(_host(peer)):
                raise Unauthenticated(
                    "this address is public and no API key exists; make one with `silkrec keys create`"
                )
            return
        text = _key(metadata or ())
        if text is None:
            raise Unauthenticated(f"no API key was sent; {_HOW}")
        found = self._keys.find(text)
        if found is None:
            raise Unauthenticated(f"the API key is unknown or revoked; {_HOW}")
        if found.role not in _ROLES:
            raise Forbidden(f"a {found.role} key may not do this; use a key with role {' or '.join(_ROLES)}")


def _host(peer: str) -> str:
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    return host.removeprefix("::ffff:")


def _key(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    for name, value in metadata:
        if isinstance(value, bytes):
            continue
        if name == "x-api-key":
            return value
        scheme, _, text = value.partition(" ")
        if name == "authorization" and scheme.lower() == "bearer" and text.strip():
            return text.strip()
    return None
