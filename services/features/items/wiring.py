"""The item part of the features service, put together: what its routes take."""

from __future__ import annotations

from dataclasses import dataclass

from services.features.items.index_content import IndexContents
from services.features.items.index_status import IndexStatuses
from services.features.items.service import ItemService
from shared.observability.tasks import TaskOwner
from shared.settings.roots import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database


@dataclass(frozen=True, slots=True)
class ItemsPart:
    """`state()` belongs into the application's lifespan state. Nothing runs behind these routes: `start` and `close`
    are there so that the application treats its parts alike."""

    service: ItemService

    @classmethod
    def build(cls, settings: Settings, *, database: Database) -> ItemsPart:
        contents = IndexContents(ArtifactStore(settings.artifacts_dir()))
        return cls(ItemService(database, IndexStatuses(contents, settings.recommender.fresh_days)))

    def state(self) -> dict[str, object]:
        return {"items": self.service}

    def start(self, _owner: TaskOwner) -> None:
        return

    async def close(self) -> None:
        return
