"""The way of one slate through a request: query, pipeline or frozen rest, page, journal, answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from services.recommender.domain import Degradation, Query, Slate
from services.recommender.experiments.applying import Asked
from services.recommender.journal import Journal
from services.recommender.routes.answers import answer, failed_record, record
from services.recommender.routes.identities import Attempt, fresh
from services.recommender.routes.queries import QueryBuilder
from services.recommender.routes.requests import MAX_COUNT, RankRequest, RecommendRequest, as_logged
from services.recommender.serving.enroller import NO_ENROLMENT, Enroller, Enrolment
from services.recommender.serving.frozen import MAX_SHOWN, Cursor, Frozen, FrozenSlates, choose, cut, new_slate_id
from services.recommender.serving.measuring import SlateMeasures
from services.recommender.serving.slates import SlateServer
from services.recommender.serving.state import ServingState, StateHolder
from shared.contracts.history import Int32
from shared.errors import NothingToServe
from shared.observability.tasks import TaskOwner
from shared.settings.roots import RecommenderSettings

# Pages that are ranked at once and frozen: three more cost the selectors little, and most readers stop there.
PAGES = 4
# What JSON and the socket still need once the journal has the slate.
SEND_S = 0.001
LEAST_JOURNAL_S = 0.0005
# Of what remains, for the frozen rest of a slate; a Redis that hangs must leave time for a fresh one.
CURSOR_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was found good. `count`: items of this page; `query.count` may be more."""

    request: RecommendRequest | RankRequest
    query: Query
    state: ServingState
    cursor: Cursor | None
    arrived: float
    count: int
    route: str
    recommendation_id: str
    enrolment: Enrolment = NO_ENROLMENT

    @property
    def asked(self) -> str:
        """Frozen pages continue only what was asked for in the same words."""
        request = self.request
        words = [request.scene, request.filter, request.filter_values, request.diversity, request.personalized]
        words += self.enrolment.words
        return orjson.dumps(words, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True, slots=True)
class Found:
    """A slate for a request; `fresh`: made for it, and not the rest of an earlier one."""

    slate: Slate
    fresh: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What this answer shows, and the rest for the next page. `exhausted`: there is no next page."""

    shown: Slate
    rest: Slate
    exhausted: bool


@dataclass(frozen=True, slots=True)
class Desk:
    """Collaborators of every slate route; `request.state.desk`. `clock` is the monotonic one that deadlines are of."""

    settings: RecommenderSettings
    builder: QueryBuilder
    holder: StateHolder
    server: SlateServer
    frozen: FrozenSlates
    journal: Journal
    tasks: TaskOwner
    enroller: Enroller | None = None
    measures: SlateMeasures = field(default_factory=SlateMeasures)
    clock: Callable[[], float] = time.monotonic
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000

    def deadline(self, arrived: float, deadline_ms: int | None) -> float:
        return arrived + (self.settings.deadline_ms if deadline_ms is None else deadline_ms) / 1000

    def prepare(
        self,
        request: RecommendRequest | RankRequest,
        *,
        arrived: float,
        deadline: float,
        route: str,
        attempt: Attempt | None,
        place: int = 0,
        extra: int = 0,
        pointer: str = "",
    ) -> Prepared:
        """Raises what QueryBuilder.build raises, and ValidationFailed for a bad cursor. `place`: of a shelf in its
        page; `extra`: items that other shelves may take away."""
        state, now_us = self.holder.current(), self.now_us()
        identity = fresh(now_us) if attempt is None else attempt.identity(place)
        cursor = None
        if isinstance(request, RankRequest):
            count = depth = len(request.input_list) if request.count is None else request.count
        else:
            count = request.count
            cursor = None if request.cursor is None else Cursor.decode(request.cursor)
            depth = max(count, min(PAGES * count, MAX_COUNT)) + extra
        query = self.builder.build(
            request,
            catalogue=state.catalogue,
            count=depth,
            deadline=deadline,
            now_us=now_us,
            seed=identity.seed,
            exclude=_shown(cursor, state),
            pointer=pointer,
        )
        return Prepared(request, query, state, cursor, arrived, count, route, identity.recommendation_id)

    async def enrolled(self, prepared: Prepared) -> Prepared:
        """With the variants that the request meets, and the query as they and the shipped settings make it."""
        if self.enroller is None:
            return prepared
        request = prepared.request
        # Shelves of a page have one deadline, which no variant of one shelf may stretch.
        deadline_sent = request.deadline_ms is not None or prepared.route == "batch"
        asked = Asked(prepared.arrived, request.diversity is not None, deadline_sent)
        query, enrolment = await self.enroller.enrol(
            prepared.query, user_id=request.user_id, visitor_id=request.visitor_id, asked=asked
        )
        if query is prepared.query and enrolment is NO_ENROLMENT:
            return prepared
        return replace(prepared, query=query, enrolment=enrolment)  # a control changes nothing and is met all the same

    async def find(self, prepared: Prepared) -> Found:
        """The frozen rest of a cursor when there is any, else a fresh one. Raises NothingToServe."""
        lost = ""
        if prepared.cursor is not None:
            timeout_s = CURSOR_SHARE * (prepared.query.deadline - self.clock())
            frozen, lost = await self.frozen.find(prepared.query.user_key, prepared.cursor, timeout_s)
            if frozen is not None and frozen.asked == prepared.asked:
                rest = _still_servable(frozen.slate, prepared)
                # A page that it no longer fills is ranked anew: a short page in the middle would read as the end.
                if len(rest.items) >= prepared.count:
                    return Found(rest, fresh=False)
        try:
            slate = await self.server.serve(prepared.query, route=prepared.route)
        except NothingToServe:
            await self._note_failure(prepared)
            raise
        if not lost:
            return Found(slate, fresh=True)
        degradation = Degradation("cursor", lost, "fresh_slate")
        self.server.count_degradation(degradation)
        return Found(replace(slate, degraded=(*slate.degraded, degradation)), fresh=True)

    def page(self, prepared: Prepared, found: Found, *, taken: Int32) -> Page:
        """The first `count` items that are not `taken`."""
        slate = found.slate
        positions = np.flatnonzero(~np.isin(slate.items.item_index, taken))
        shown, rest = positions[: prepared.count], positions[prepared.count :]
        # A fresh slate that did not reach its depth holds all there is; behind any other there may be more.
        complete = found.fresh and len(slate.items) < prepared.query.count
        return Page(choose(slate, shown), choose(slate, rest), exhausted=complete and len(rest) == 0)

    def without(self, page: Page, taken: Int32) -> Page:
        """Nothing `taken` is left in the rest."""
        return replace(page, rest=choose(page.rest, np.flatnonzero(~np.isin(page.rest.items.item_index, taken))))

    def whole(self, prepared: Prepared, found: Found) -> Page:
        """For rank: one page, and nothing behind it."""
        return Page(cut(found.slate, 0, prepared.count), cut(found.slate, prepared.count), exhausted=True)

    def next_cursor(self, prepared: Prepared, page: Page, *, others: Int32) -> str | None:
        """Keeps the rest behind the answer's back. `others`: what the page's other shelves show."""
        before = np.empty(0, np.int32) if prepared.cursor is None else prepared.cursor.shown
        shown = np.unique(np.concatenate([before, page.shown.items.item_index, others])).astype(np.int32)
        if page.exhausted or len(shown) > MAX_SHOWN:
            return None
        cursor = Cursor(new_slate_id(), shown)
        if len(page.rest.items):
            frozen = Frozen(prepared.asked, page.rest)
            self.tasks.spawn("frozen slate", self.frozen.keep(prepared.query.user_key, cursor.slate_id, frozen))
        return cursor.encode()

    async def answer(self, prepared: Prepared, page: Page, next_cursor: str | None) -> dict[str, Any]:
        """The answer's JSON object, once the journal holds the slate or can be waited for no longer."""
        recommendation_id = prepared.recommendation_id
        query, slate = prepared.query, page.shown
        took_s = self.clock() - prepared.arrived
        served = record(
            slate,
            query,
            recommendation_id=recommendation_id,
            request=as_logged(prepared.request),
            page=_continued(prepared),
            took_us=round(took_s * 1e6),
            enrolment=prepared.enrolment,
            measures=self._measured(prepared, slate),
        )
        body = answer(
            slate,
            recommendation_id=recommendation_id,
            catalogue=prepared.state.catalogue,
            properties=prepared.request.return_properties,
            explain=query.explain,
            next_cursor=next_cursor,
            experiments=prepared.enrolment.shown,
        )
        # Last, so that a disk that hangs costs only what is left of the deadline.
        left = max(LEAST_JOURNAL_S, query.deadline - self.clock() - SEND_S)
        await self.journal.append(served, timeout_s=left)
        body["took_ms"] = round((self.clock() - prepared.arrived) * 1000, 3)
        self.server.answered(query.deadline, route=prepared.route)
        return body

    def _measured(self, prepared: Prepared, slate: Slate) -> Mapping[str, float | None]:
        """Nothing outside experiments."""
        if not prepared.enrolment.exposures:
            return {}
        return self.measures.of(slate.items.item_index, prepared.state)

    async def _note_failure(self, prepared: Prepared) -> None:
        if not prepared.enrolment.exposures:
            return
        query = prepared.query
        failed = failed_record(
            query,
            recommendation_id=prepared.recommendation_id,
            request=as_logged(prepared.request),
            took_us=round((self.clock() - prepared.arrived) * 1e6),
            enrolment=prepared.enrolment,
        )
        left = max(LEAST_JOURNAL_S, query.deadline - self.clock() - SEND_S)
        await self.journal.append(failed, timeout_s=left)

    def checked(self, prepared: Prepared) -> dict[str, Any]:
        """The answer to `validate_only`: the same shape, without items, and nothing is kept of it."""
        empty: dict[str, Any] = {
            "recommendation_id": "",
            "items": [],
            "next_cursor": None,
            "experiments": [],
            "last_event_id": None,
        }
        state = prepared.state
        versions = {
            "release": state.release_name or None,
            "model_version": state.model_version,
            "index_version": state.index_version,
        }
        took_ms = round((self.clock() - prepared.arrived) * 1000, 3)
        return {**empty, **versions, "degraded_stages": [], "stage_ms": {}, "took_ms": took_ms, "validate_only": True}


def _continued(prepared: Prepared) -> Mapping[str, Any] | None:
    if prepared.cursor is None:
        return None
    return {"slate_id": prepared.cursor.slate_id, "offset": len(prepared.cursor.shown)}


def _shown(cursor: Cursor | None, state: ServingState) -> Int32:
    """A cursor comes from outside: what is no item_index must not get near an array."""
    if cursor is None:
        return np.empty(0, np.int32)
    return cursor.shown[(cursor.shown >= 0) & (cursor.shown < state.catalogue.size)]


def _still_servable(slate: Slate, prepared: Prepared) -> Slate:
    """What was hidden, deleted or excluded since the slate was frozen is left out."""
    query, item_index = prepared.query, slate.items.item_index
    allowed = prepared.state.catalogue.servable(query.now_us, item_index) & ~np.isin(item_index, query.exclude)
    return choose(slate, np.flatnonzero(allowed))
