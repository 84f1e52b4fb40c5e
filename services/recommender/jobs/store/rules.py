"""What the settings say about chunks, in the units of the rows."""

from __future__ import annotations

from dataclasses import dataclass

from services.recommender.jobs.sizing import ChunkSizing
from shared.settings.roots import JobsSettings


@dataclass(frozen=True, slots=True)
class Rules:
    """`notify`: state changes go to the outbox, because a webhook is set."""

    sizing: ChunkSizing
    lease_us: int
    max_attempts: int
    max_parked: int
    max_active: int
    notify: bool

    @classmethod
    def of(cls, settings: JobsSettings) -> Rules:
        return cls(
            sizing=ChunkSizing(
                settings.chunk_target_s, settings.chunk_min_users, settings.chunk_max_users, settings.chunk_first_users
            ),
            lease_us=round(settings.lease_s * 1_000_000),
            max_attempts=settings.max_attempts,
            max_parked=settings.max_parked_chunks,
            max_active=settings.max_active_jobs,
            notify=bool(settings.webhook.url),
        )
