"""Rows of a small shop for the tests of users and readers, and the parts of the service around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy import select

from services.features.online.store import HistoryStore
from services.features.reader import FeatureReader
from services.features.routes.users import router
from services.features.users.wiring import UsersPart
from shared.actions import ActionTable
from shared.observability.metrics import Metrics
from shared.settings.roots import RedisSettings, Settings
from shared.storage import redis as redis_factory
from shared.storage.database import Database
from shared.storage.tables import (
    events,
    experiment_excluded_units,
    experiment_slates,
    experiment_unit_days,
    exposures,
    feedback,
    items,
    recommendation_items,
    recommendations,
    user_state,
)
from shared.web.app import create_app
from shared.web.health import Readiness
from tests.asgi import running

SETTINGS = Settings.model_validate(
    {
        "data": {"user_fields": {"country": {"type": "string"}, "age": {"type": "number"}}},
        # Nothing listens there, so the receipts of deletions say what an inference service without latents would.
        "recommender": {"inference_targets": ["127.0.0.1:1"]},
    }
)
ACTIONS = ActionTable.from_schema(SETTINGS.data)
CLICK = ACTIONS.by_name["click"].code


class NoKeys:
    def has_keys(self) -> bool:
        return False

    def find(self, text: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Suite:
    """The users' part of the service over real stores. `http` speaks to its routes."""

    http: httpx.AsyncClient
    part: UsersPart
    redis: Redis
    reader: FeatureReader


@contextlib.asynccontextmanager
async def suite(database: Database, redis_url: str) -> AsyncIterator[Suite]:
    redis = redis_factory.connect(redis_url, RedisSettings(), timeout_ms=1000)
    histories = HistoryStore(redis, SETTINGS.features.history)
    part = UsersPart.build(SETTINGS, database=database, redis_write=redis, histories=histories, actions=ACTIONS)
    reader = FeatureReader(database, redis, SETTINGS.features, ACTIONS)
    state: dict[str, Any] = {"settings": SETTINGS, "database": database, "keys": NoKeys(), **part.state()}

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield state

    app = create_app(
        title="users",
        lifespan=lifespan,
        settings=SETTINGS,
        service="features",
        metrics=Metrics("features"),
        max_body_bytes=4 * 1024 * 1024,
        ready=lambda: Readiness(True, {}),
    )
    app.include_router(router)
    async with running(app) as http:
        try:
            yield Suite(http, part, redis, reader)
        finally:
            await reader.close()
            await part.close()
            await redis.aclose(close_connection_pool=True)


def add_item(database: Database, item_index: int) -> None:
    with database.write() as connection:
        connection.execute(
            items.insert().values(
                item_index=item_index,
                item_id=f"i{item_index}",
                known=True,
                categories=["a"],
                is_hidden=False,
                created_at_us=0,
                properties={},
                embeddings={},
                revision=item_index,
                updated_at_us=0,
            )
        )


def add_events(database: Database, user_key: str, *item_indexes: int, start_s: int = 1000, day: int = 0) -> None:
    """Clicks, one a second; the user's revision rises by one, as a commit of the service raises it."""
    with database.write() as connection:
        for place, item_index in enumerate(item_indexes):
            at_us = (start_s + place) * 1_000_000
            connection.execute(
                events.insert().values(
                    event_id=f"{user_key}-{start_s}-{place}",
                    occurred_day=day,
                    user_key=user_key,
                    item_index=item_index,
                    action=CLICK,
                    occurred_at_us=at_us,
                    received_at_us=at_us,
                    properties={"n": place},
                )
            )
        state = select(user_state.c.revision).where(user_state.c.user_key == user_key)
        revision = connection.scalar(state)
        if revision is None:
            connection.execute(user_state.insert().values(user_key=user_key, revision=1))
        else:
            changed = user_state.update().where(user_state.c.user_key == user_key)
            connection.execute(changed.values(revision=revision + 1))


def add_feedback(database: Database, user_key: str, item_index: int, *, value: float, at_us: int) -> None:
    with database.write() as connection:
        connection.execute(
            feedback.insert().values(
                user_key=user_key,
                item_index=item_index,
                feedback_type="rating",
                value=value,
                event_id=f"{user_key}-{item_index}",
                updated_at_us=at_us,
            )
        )


def add_slate(database: Database, user_key: str, recommendation_id: str, *item_indexes: int, day: int = 0) -> None:
    with database.write() as connection:
        connection.execute(
            recommendations.insert().values(
                recommendation_id=recommendation_id,
                user_key=user_key,
                scene="home",
                served_at_us=day * 86_400_000_000,
                served_day=day,
                release="r1",
                took_us=1,
                degraded=[],
                request={"count": len(item_indexes)},
            )
        )
        for position, item_index in enumerate(item_indexes):
            connection.execute(
                recommendation_items.insert().values(
                    recommendation_id=recommendation_id,
                    position=position,
                    item_index=item_index,
                    score=1.0,
                    propensity=1.0,
                    source_bits=1,
                    served_day=day,
                )
            )


def add_exposure(database: Database, unit: str, *recommendation_ids: str, day: int = 0) -> None:
    """One, a row a slate, and what an analysis keeps of the unit."""
    met = {"experiment": "mmr", "phase": 0, "unit": unit, "variant": "diverse"}
    at_us = day * 86_400_000_000
    slate = {"served_at_us": at_us, "served_day": day, "took_us": 1, "items": 1, "rung": "model"}
    with database.write() as connection:
        connection.execute(
            exposures.insert().values(**met, first_at_us=at_us, first_day=day, segment="", simulated=False)
        )
        days = {name: met[name] for name in ("experiment", "phase", "unit")}
        connection.execute(
            experiment_unit_days.insert().values(**days, day=day, action=-1, age=0, events=1, value=0.0, seen=1)
        )
        connection.execute(experiment_excluded_units.insert().values(**days))
        for name in recommendation_ids:
            row = {**met, **slate, "recommendation_id": name, "degraded": False, "failed": False}
            connection.execute(experiment_slates.insert().values(**row))
