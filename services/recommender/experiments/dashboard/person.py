"""What the suite knows of one user: their history, and the newest slate with its sources and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select

from services.features.reader import FeatureReader
from services.recommender.catalogue import Catalogue
from services.recommender.domain import SlateItem
from services.recommender.experiments.dashboard.ports import HistoryEvent, NotShown, SlateRow, UserPage
from services.recommender.experiments.enrolling import SIMULATED
from services.recommender.journal import ServedSlate
from services.recommender.journal.database import load_slate
from shared.actions import ActionTable
from shared.errors import NotFound
from shared.identity import user_key
from shared.storage.database import Database
from shared.storage.tables import recommendations, user_state

EVENTS = 100
"""Newest events that the page lists."""
TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Person:
    """`catalogue`: the one that is being served."""

    database: Database
    reader: FeatureReader
    catalogue: Callable[[], Catalogue]
    actions: ActionTable

    async def page(self, user_id: str) -> UserPage:
        """Of a user, or of a visitor when written `v:` + id. Raises NotFound for an id that no store knows."""
        key = user_id if user_id.startswith(("u:", "v:")) else user_key(user_id, None)
        slate, known = await self.database.run(self._newest, key)
        view = await self.reader.user(key, timeout_s=TIMEOUT_S)
        history = tuple(self._event(row) for row in view.history.rows[::-1][:EVENTS])
        if slate is None and not known and not history:
            raise NotFound(f"no store knows a user {user_id!a}; a visitor is written v: and the id")
        if slate is None:
            return UserPage(user_id=user_id, history=history, slate=(), not_shown=())
        return self._with(user_id, history, slate)

    def _newest(self, key: str) -> tuple[ServedSlate | None, bool]:
        table = recommendations.c
        newest = select(table.recommendation_id).where(table.user_key == key).order_by(table.served_at_us.desc())
        with self.database.read() as connection:
            recommendation_id = connection.scalar(newest.limit(1))
            state = connection.scalar(select(user_state.c.user_key).where(user_state.c.user_key == key))
            return None if recommendation_id is None else load_slate(connection, recommendation_id), state is not None

    def _event(self, row: np.void) -> HistoryEvent:
        item_id, title = self._item(int(row["item"]))
        action = self.actions.by_code.get(int(row["action"]))
        return HistoryEvent(
            occurred_at_us=int(row["time"]) * 1_000_000,
            item_id=item_id,
            title=title,
            event_type=f"action {int(row['action'])}" if action is None else action.name,
        )

    def _with(self, user_id: str, history: tuple[HistoryEvent, ...], slate: ServedSlate) -> UserPage:
        document = slate.request
        rows = tuple(self._row(row) for row in slate.rows())
        return UserPage(
            user_id=user_id,
            history=history,
            slate=rows,
            not_shown=tuple(self._left_out(*one) for one in document.get("filtered", ())),
            recommendation_id=slate.recommendation_id,
            served_at_us=slate.served_at_us,
            scene=slate.scene,
            release=slate.release or None,
            took_ms=slate.took_us / 1000,
            simulated=document.get("body", {}).get("context", {}).get(SIMULATED) is True,
            experiments={str(key): str(variant) for key, _phase, variant in document.get("experiments", ())},
            source_counts=dict(Counter(source for row in rows for source in row.sources)),
            degraded=tuple((one["stage"], one["cause"], one["fallback"]) for one in slate.degraded),
        )

    def _row(self, row: SlateItem) -> SlateRow:
        item_id, title = self._item(row.item_index)
        return SlateRow(
            position=row.position,
            item_id=item_id,
            title=title,
            score=row.score,
            sources=row.retrieve_ids,
            scores=row.scores,
            reasons=row.reasons,
            propensity=row.propensity,
        )

    def _left_out(self, item_index: int, stage: str, rule: str) -> NotShown:
        item_id, title = self._item(item_index)
        return NotShown(item_id=item_id, title=title, stage=stage, rule=rule)

    def _item(self, item_index: int) -> tuple[str, str | None]:
        catalogue = self.catalogue()
        try:
            return catalogue.item_id(item_index), catalogue.properties(item_index, ["title"]).get("title")
        except KeyError:
            return f"#{item_index}", None
