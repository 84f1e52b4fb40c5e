"""Between a Query and the pipeline: which variants it meets, and what they make of it.

Nothing runs and nothing is shipped: one dictionary look-up. Experiments over ids and context alone: no I/O. Only where
one reads the profile or sticky buckets are the features read here, early, and handed on with the Query: the same round
trip, with two keys more, and no second one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from redis.asyncio import Redis

from services.recommender.components.stored import last_good_key
from services.recommender.domain import CandidateFilter, Query, UserFeatures
from services.recommender.experiments.applying import Asked, apply
from services.recommender.experiments.enrolling import Known, enrol, exposures, waiting
from services.recommender.experiments.enrolment import Assignment, merged_settings
from services.recommender.experiments.holdouts import holding
from services.recommender.experiments.live import Live, SceneExperiments
from services.recommender.serving import buckets
from services.recommender.serving.state import StateHolder
from shared.contracts.variant_release import SETTING, VariantRelease
from shared.observability.logging import get_logger
from shared.observability.tasks import TaskOwner

_log = get_logger(__name__)
# Of what remains, as the pipeline's own reading has it; the reader ends a little earlier by itself.
FEATURES_SHARE = 0.35
OWN_SHARE = 0.9
RESERVE_S = 0.006
LEAST_S = 0.002


class UserReading(Protocol):
    """`pipeline.protocols.UserHydrator`."""

    async def hydrate(self, query: Query, snapshot: Any, timeout_s: float, /) -> UserFeatures: ...


@dataclass(frozen=True, slots=True)
class Enrolment:
    """`assignments` are those with a variant; `exposures` what the journal keeps of those that are data."""

    assignments: tuple[Assignment, ...] = ()
    exposures: tuple[Mapping[str, Any], ...] = ()

    @property
    def shown(self) -> list[dict[str, Any]]:
        """As answers say it."""
        return [{"key": one.experiment, "variant": one.variant} for one in self.assignments]

    @property
    def words(self) -> list[Any]:
        """A frozen page continues only what the same variants made."""
        return [[one.experiment, one.phase, one.variant] for one in self.assignments]


NO_ENROLMENT = Enrolment()


@dataclass(frozen=True, slots=True)
class Enroller:
    """`live` gives the newest picture. `compile_rules` is cached by text. `left_out` is told the experiment that leaves
    a request out because a release of its variants is not loaded."""

    live: Callable[[], Live]
    reading: UserReading
    redis_write: Redis
    holder: StateHolder
    tasks: TaskOwner
    compile_rules: Callable[[str], CandidateFilter]
    left_out: Callable[[str], None] = field(default=lambda _experiment: None)
    clock: Callable[[], float] = field(default=time.monotonic)

    async def enrol(
        self, query: Query, *, user_id: str | None, visitor_id: str | None, asked: Asked
    ) -> tuple[Query, Enrolment]:
        """Never raises for an experiment: a request is worth more than a comparison."""
        scene = self.live().scene(query.scene)
        if scene is None:
            return query, NO_ENROLMENT
        try:
            return await self._enrol(scene, query, user_id, visitor_id, asked)
        except Exception as error:  # noqa: BLE001  (whatever an experiment does, the slate must come)
            _log.error("a request goes without experiments", exc_info=error)
            return query, NO_ENROLMENT

    async def _enrol(
        self, scene: SceneExperiments, query: Query, user_id: str | None, visitor_id: str | None, asked: Asked
    ) -> tuple[Query, Enrolment]:
        units = {kind: value for kind, value in (("user", user_id), ("visitor", visitor_id)) if value is not None}
        held_by = holding(scene.holdouts, units, query.now_us)
        if shipped := scene.shipped_to(held_by):
            query = apply(query, shipped, asked, self.compile_rules, shipped=True)
        if not scene.experiments:
            return query, NO_ENROLMENT
        beside = self.holder.current().beside
        for experiment in waiting(scene, beside):
            self.left_out(experiment)
        known = Known(units, query.context, query.now_us, held_by=held_by, loaded=beside)
        if scene.reads_user:
            query = await self._read(scene, query, units)
            known = _knowing(known, scene, query.user)
        assignments = enrol(scene, known)
        if not assignments:
            return query, NO_ENROLMENT
        if scene.keeps_buckets and query.user is not None:
            self._remember(scene, assignments, query.user)
        settings = merged_settings(assignments)
        query = apply(query, settings, asked, self.compile_rules, shipped=False)
        if (release := VariantRelease.of(settings.get(SETTING))) is not None:
            query = replace(query, release=beside[release])
        return query, Enrolment(assignments, tuple(exposures(scene, assignments, known, query.user_key)))

    async def _read(self, scene: SceneExperiments, query: Query, units: Mapping[str, str]) -> Query:
        """The query with what was read; as it came when it reads no history or nobody answered in time."""
        timeout_s = FEATURES_SHARE * (query.deadline - RESERVE_S - self.clock())
        if not query.personalized or timeout_s < LEAST_S:
            return query
        keys = tuple(buckets.sticky_key(*one) for one in units.items()) if scene.keeps_buckets else ()
        # Which release the request meets is not known yet; the pipeline reads nothing after this.
        keys += tuple(
            last_good_key(beside.release.release, query.user_key)
            for wanted, beside in self.holder.current().beside.items()
            if wanted in scene.releases
        )
        begin = self.clock()
        try:
            async with asyncio.timeout(timeout_s):
                wanted = replace(query, extra_keys=keys)
                user = await self.reading.hydrate(wanted, self.holder.current(), OWN_SHARE * timeout_s)
        except TimeoutError:
            return query
        return replace(query, user=user, user_ms=(self.clock() - begin) * 1000)

    def _remember(self, scene: SceneExperiments, assignments: tuple[Assignment, ...], user: UserFeatures) -> None:
        sticky = {live.definition.key for live in scene.experiments if live.keeps_buckets}
        kept = [one for one in assignments if one.experiment in sticky]
        documents = buckets.to_remember(kept, user.extras)
        if documents:
            self.tasks.spawn("sticky buckets", buckets.keep(self.redis_write, documents))


def _knowing(known: Known, scene: SceneExperiments, user: UserFeatures | None) -> Known:
    if user is None:
        return known
    lost = {(miss.store, miss.what) for miss in user.misses if miss.cause in ("unavailable", "timeout")}
    profile = None if ("database", "profile") in lost else user.profile
    sticky = None
    if scene.keeps_buckets and ("redis", "extras") not in lost:
        sticky = buckets.merged(known.units, user.extras)
    return replace(known, user=profile, buckets=sticky)
