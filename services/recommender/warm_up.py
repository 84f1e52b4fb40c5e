"""A few slates that nobody sees, so that the first visitor pays for no import, connection or compiled filter."""

from __future__ import annotations

import time

from services.recommender.domain import Query
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving.slates import SlateServer
from shared.contracts.history import Int32
from shared.errors import NothingToServe

ROUNDS = 5
AROUND = 3
DEADLINE_S = 0.25
_NOBODY = "v:~warm-up~"


async def warm_up(server: SlateServer, builder: QueryBuilder, around: Int32) -> None:
    """Runs each scene a few times; an empty installation has nothing to warm. `around`: items whose neighbours the
    index is asked for, as nobody has a history."""
    for name in builder.schema.scenes:
        for _ in range(ROUNDS):
            try:
                await server.serve(_query(builder, name, around), route="warm_up")
            except NothingToServe:
                return


def _query(builder: QueryBuilder, name: str, around: Int32) -> Query:
    scene = builder.scene(name)
    return Query(
        user_key=_NOBODY,
        scene=name,
        weights=scene.weights,
        count=10,
        deadline=time.monotonic() + DEADLINE_S,
        now_us=time.time_ns() // 1000,
        seed=1,
        scene_filter=builder.scene_filter(scene),
        context_items=around,
    )
