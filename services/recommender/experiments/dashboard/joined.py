"""The pages' port on the real thing: the registry, the analysis, and what the stores know of a user."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.dashboard.person import Person
from services.recommender.experiments.dashboard.ports import AuditEntry, ExperimentRow, MetricChoice, NewPhase, UserPage
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.live import releases_of
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry.store import ExperimentStore
from services.recommender.experiments.report import Health, Report
from shared.contracts.variant_release import VariantRelease
from shared.storage.database import Database


@dataclass(frozen=True, slots=True)
class JoinedPort:
    """`dashboard.ports.DashboardPort`. Everything that blocks runs in the database's threads. `releases`: those of
    variants that can be served here now; `releases_status` says how the others stand."""

    database: Database
    store: ExperimentStore
    results: Results
    person: Person
    releases: Callable[[], Collection[VariantRelease]]
    releases_status: Callable[[], str]

    async def list(self) -> Sequence[ExperimentRow]:
        return await self.database.run(self._rows)

    async def get(self, key: str) -> RegisteredExperiment:
        return (await self.database.run(self.store.get, key)).registered

    async def report(self, key: str) -> Report:
        return await self.database.run(self.results.of, key)

    async def audit(self, key: str) -> Sequence[AuditEntry]:
        found = await self.database.run(self.store.audit, key)
        return [AuditEntry(at_us=one.at_us, actor=one.actor, action=one.action, detail=one.detail) for one in found]

    async def create(self, experiment: RegisteredExperiment, actor: str) -> RegisteredExperiment:
        return (await self.database.run(lambda: self.store.create(experiment, actor=actor))).registered

    async def edit(self, key: str, experiment: RegisteredExperiment, actor: str) -> None:
        await self.database.run(lambda: self.store.edit(key, experiment, actor=actor))

    async def start(self, key: str, actor: str) -> None:
        await self.database.run(lambda: self.store.start(key, actor=actor))

    async def stop(self, key: str, actor: str) -> None:
        await self.database.run(lambda: self.store.stop(key, actor=actor))

    async def ship(self, key: str, variant: str, actor: str) -> None:
        await self.database.run(lambda: self.store.ship(key, variant, actor=actor))

    async def roll_back(self, key: str, actor: str) -> None:
        await self.database.run(lambda: self.store.roll_back(key, actor=actor))

    async def kill_variant(self, key: str, variant: str, actor: str) -> None:
        await self.database.run(lambda: self.store.kill_variant(key, variant, actor=actor))

    async def new_phase(self, key: str, phase: NewPhase, actor: str) -> None:
        await self.database.run(
            lambda: self.store.new_phase(
                key,
                actor=actor,
                weights=phase.weights,
                coverage=phase.coverage,
                seed=phase.seed,
                keep_out_earlier=phase.keep_out_earlier,
            )
        )

    async def waiting(self, experiment: RegisteredExperiment) -> str | None:
        wanted = set(releases_of(experiment.definition))
        stopped = experiment.definition.status is Status.STOPPED
        return None if stopped or wanted.issubset(self.releases()) else self.releases_status()

    async def metrics(self) -> Sequence[MetricChoice]:
        return [MetricChoice(metric=one.key, title=one.title or one.key) for one in self.results.known.values()]

    async def user(self, user_id: str) -> UserPage:
        return await self.person.page(user_id)

    def _rows(self) -> Sequence[ExperimentRow]:
        return [self._row(stored.registered) for stored in self.store.list()]

    def _row(self, registered: RegisteredExperiment) -> ExperimentRow:
        found = self.results.of_registered(registered)
        blocked = any(alarm.blocks for alarm in found.alarms)
        none = found.as_of_us is None
        return ExperimentRow(
            experiment=registered,
            health=Health.NO_DATA if none else Health.BLOCKED if blocked else Health.HEALTHY,
            units=sum(count.units for count in found.variants),
            simulated=found.simulated,
            as_of_us=found.as_of_us,
        )
