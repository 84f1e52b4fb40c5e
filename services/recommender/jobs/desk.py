"""What API, dashboard, command line and schedules do with jobs: checked, then one transaction. Blocking, but for
`at_desk`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import IntegrityError
from starlette.requests import Request

from services.recommender.jobs.spec import JobBody, check
from services.recommender.jobs.store import jobs as job_rows
from services.recommender.jobs.store import progress
from services.recommender.jobs.store.jobs import JobRow, JobState, NewJob
from services.recommender.jobs.store.progress import Progress
from services.recommender.jobs.store.rules import Rules
from shared.errors import Conflict
from shared.observability.context import RequestContext
from shared.settings.roots import Settings
from shared.storage.database import Database

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as it is shown. `parked`: (chunk, users, reason); `failures`: (user_key, reason), the first ones."""

    job: JobRow
    progress: Progress
    parked: Sequence[tuple[int, int, str]] = ()
    failures: Sequence[tuple[str, str]] = ()


SHOWN_FAILURES = 20


@dataclass(frozen=True, slots=True)
class JobDesk:
    """Raises DatabaseUnavailable everywhere."""

    database: Database
    settings: Settings

    @property
    def rules(self) -> Rules:
        return Rules.of(self.settings.jobs)

    def submit(
        self, body: JobBody, *, actor: str, idempotency_key: str | None = None, origin: RequestContext | None = None
    ) -> tuple[Seen, bool]:
        """The job, and whether it is new. `origin`: the request that asks for it.

        Raises ValidationFailed, NotFound, Conflict, TooManyRequests."""
        check(body, self.settings.data, files=self.settings.jobs.input_dir is not None)
        new = NewJob(body.type, body.stored(), body.digest(), actor, idempotency_key, origin)
        try:
            job, is_new = self.database.transact(lambda connection: job_rows.create(connection, new, self.rules))
        except IntegrityError:
            # Two requests with one key at once: the other was first, and is found now.
            try:
                job, is_new = self.database.transact(lambda connection: job_rows.create(connection, new, self.rules))
            except IntegrityError:
                raise Conflict("this Idempotency-Key is being used by another request; ask again") from None
        return self._seen([job])[job.job_id], is_new

    def get(self, job_id: str) -> Seen:
        """Raises NotFound."""
        with self.database.read() as connection:
            job = job_rows.get(connection, job_id)
            counted = progress.of(connection, [job])[job_id]
            parked = progress.parked(connection, job_id)
            return Seen(job, counted, parked, progress.failures(connection, job_id, SHOWN_FAILURES))

    def page(self, *, limit: int, state: JobState | None, after: tuple[int, str] | None) -> list[Seen]:
        with self.database.read() as connection:
            found = job_rows.page(connection, limit=limit, state=state, after=after)
        seen = self._seen(found)
        return [seen[job.job_id] for job in found]

    def cancel(self, job_id: str) -> Seen:
        """Raises NotFound, Conflict."""
        job = self.database.transact(lambda connection: job_rows.cancel(connection, job_id, self.rules))
        return self._seen([job])[job.job_id]

    def _seen(self, found: Sequence[JobRow]) -> Mapping[str, Seen]:
        with self.database.read() as connection:
            counted = progress.of(connection, found)
        return {job.job_id: Seen(job, counted[job.job_id]) for job in found}


async def at_desk(request: Request, work: Callable[[JobDesk], T]) -> T:
    """For a handler: in the database's threads."""
    desk: JobDesk = request.state.jobs
    return await desk.database.run(work, desk)
