"""The user part of the features service, put together: what its routes take and what runs behind them."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from services.features.users.deletion_worker import DeletionStores, DeletionWorker, Histories
from services.features.users.latents import LatentsDoor
from services.features.users.service import UserService
from services.inference.client import GrpcInferenceClient
from shared.actions import ActionTable
from shared.observability.tasks import TaskOwner
from shared.settings.roots import Settings
from shared.storage.database import Database


@dataclass(frozen=True, slots=True)
class UsersPart:
    """`state()` belongs into the application's lifespan state; `start` and `close` into the lifespan itself."""

    service: UserService
    worker: DeletionWorker
    latents: LatentsDoor

    @classmethod
    def build(
        cls,
        settings: Settings,
        *,
        database: Database,
        redis_write: Redis,
        histories: Histories,
        actions: ActionTable,
    ) -> UsersPart:
        key = settings.recommender.inference_key
        latents = LatentsDoor(
            GrpcInferenceClient(settings.inference_targets(), key=None if key is None else key.get_secret_value())
        )
        stores = DeletionStores(database, redis_write, histories, latents, tuple(settings.data.scenes))
        service = UserService(database, redis_write, histories, settings.features.history, actions)
        return cls(service, DeletionWorker(stores), latents)

    def state(self) -> dict[str, object]:
        return {"users": self.service, "deletions": self.worker}

    def start(self, owner: TaskOwner) -> None:
        owner.start("user deletions", self.worker.run)

    async def close(self) -> None:
        """After the owner was closed."""
        await self.latents.close()
