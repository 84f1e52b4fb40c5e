"""The stylesheet, the script, the icon, and plotly.min.js out of the installed wheel. Nothing comes from elsewhere.

The address of each carries a hash of its content, so browsers keep it for a year and never ask again. Plotly is 4.8 MB,
1.4 MB compressed: it is compressed once, in a thread, at its first request.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import Request, Response

from shared.errors import ConfigurationError, NotFound

_HERE = Path(__file__).parent / "static"
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
NAMES = ("dashboard.css", "dashboard.js", "icon.svg", "plotly.min.js")
_YEAR_S = 31_536_000
# Level 6 takes 0.2 s for Plotly, level 9 0.5 s for 1 % less.
_GZIP_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Asset:
    """`tag`: of the plain bytes; a compressed answer has a tag of its own, as RFC 9110 asks."""

    plain: bytes
    packed: bytes
    tag: str
    media_type: str


def url(name: str) -> str:
    return f"/dashboard/static/{name}?v={_version(name)}"


async def answer(request: Request, name: str) -> Response:
    """Raises NotFound for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise NotFound(f"there is no {name[:80]!a}")
    asset = await asyncio.to_thread(_load, name)
    packs = "gzip" in request.headers.get("accept-encoding", "")
    tag = f'"{asset.tag}-gz"' if packs else f'"{asset.tag}"'
    current = request.query_params.get("v") == asset.tag
    headers = {
        "etag": tag,
        "cache-control": f"public, max-age={_YEAR_S}, immutable" if current else "no-cache",
        "vary": "accept-encoding",
        "x-content-type-options": "nosniff",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if packs:
        headers["content-encoding"] = "gzip"
    return Response(asset.packed if packs else asset.plain, headers=headers, media_type=asset.media_type)


@cache
def _load(name: str) -> Asset:
    plain = _path(name).read_bytes()
    packed = gzip.compress(plain, _GZIP_LEVEL, mtime=0)
    return Asset(plain, packed, _version(name), _TYPES[name.rpartition(".")[2]])


@cache
def _version(name: str) -> str:
    with _path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _path(name: str) -> Path:
    if name != "plotly.min.js":
        return _HERE / name
    # The package's folder is found without importing it: its Python takes 0.3 s and 40 MB, and is never used.
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("the package plotly is not installed; ./run setup installs it")
    return Path(spec.submodule_search_locations[0]) / "package_data" / name
