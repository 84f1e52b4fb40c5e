"""When the recommender may get traffic.

Ready: catalogue and daily counts were read at least once, and the process is warm. Then popular can be served, or the
installation is legitimately empty: an empty one must be ready too, because its first import may come through this very
service (writing routes are forwarded), and waiting for items would wait for ever. Dependencies are listed and never
turn it false: what was read once goes on being served without any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.web.health import Readiness


class ReadinessBoard:
    """Asked from the first moment on; the lifespan pins up what to look at once that exists."""

    def __init__(self) -> None:
        self._loaded: Callable[[], bool] = lambda: False
        self._dependencies: Callable[[], Mapping[str, str]] = dict
        self._warm = False

    def pin(self, *, loaded: Callable[[], bool], dependencies: Callable[[], Mapping[str, str]]) -> None:
        self._loaded = loaded
        self._dependencies = dependencies

    def warm(self) -> None:
        self._warm = True

    def closed(self) -> None:
        """The process is going away: whoever balances load should look elsewhere."""
        self._warm = False

    def now(self) -> Readiness:
        return Readiness(self._warm and self._loaded(), self._dependencies())
