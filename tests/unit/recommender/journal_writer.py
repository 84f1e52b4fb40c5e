"""A process that journals slates until it is killed; each line it prints is an answer that has left."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from services.recommender.journal import Journal
from services.recommender.metrics import JournalMetrics
from shared.observability.metrics import Metrics
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from tests.unit.recommender.slates import slate


async def main(state: Path) -> None:
    database = Database(f"sqlite:///{state / 'unused.db'}", DatabaseSettings())
    journal = Journal(
        state=state, process="test", database=database, metrics=JournalMetrics(Metrics("test")), max_slates=1_000_000
    )
    number = 0
    while True:
        recommendation_id = f"rec-{number}"
        if not await journal.append(slate(recommendation_id), timeout_s=30):
            raise SystemExit("a record was refused")
        print(recommendation_id, flush=True)
        number += 1


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
