"""Where background tasks let their blocking reads run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Threads(Protocol):
    """`shared.storage.database.Database`, as far as a refresher uses it: its pool bounds what runs at the same time."""

    async def run(self, work: Callable[..., T], *args: Any) -> T: ...
