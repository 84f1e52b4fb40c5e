"""The dashboard on a registry in memory, keys and all: what its tests open."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI

from services.recommender.experiments import definitions
from services.recommender.experiments.dashboard import pages
from services.recommender.experiments.dashboard.access.sign_in import SignIn
from services.recommender.experiments.dashboard.guard import Dashboard
from services.recommender.experiments.dashboard.ports import AuditEntry, ExperimentRow, MetricChoice, NewPhase, UserPage
from services.recommender.experiments.dashboard.view.results import is_blocked
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.report import Health, Report
from services.recommender.jobs.desk import JobDesk
from shared.errors import Conflict, NotFound
from shared.observability.metrics import Metrics
from shared.settings.roots import DashboardSettings, Settings
from shared.web.app import create_app
from shared.web.auth import Role
from shared.web.health import Readiness
from tests import dashboard_example as example

SECRET = b"the secret of the dashboard's tests, long enough"
NOW_US = example.START_US + example.DAYS * example.DAY_US


@dataclass(frozen=True)
class Key:
    key_id: str
    role: Role
    name: str


@dataclass
class FakeKeys:
    """{text: key}; `revoked`: ids."""

    keys: Mapping[str, Key]
    revoked: set[str] = field(default_factory=set)

    def has_keys(self) -> bool:
        return bool(self.keys)

    def find(self, text: str) -> Key | None:
        key = self.keys.get(text)
        return None if key is None or key.key_id in self.revoked else key

    def is_valid(self, key_id: str) -> bool:
        return key_id not in self.revoked and any(key.key_id == key_id for key in self.keys.values())


ROLES: tuple[Role, ...] = ("client", "server", "admin")


def some_keys() -> FakeKeys:
    return FakeKeys({f"sk_{role}_x": Key(f"key_{role}", role, f"the {role}") for role in ROLES})


class FakePort:
    """Keeps experiments, reports and the audit log in dictionaries; `calls` in order."""

    def __init__(self) -> None:
        drafted = example.experiment("longer-slates", Status.DRAFT)
        stopped = replace(example.experiment("bts-against-random", Status.STOPPED), shipped="diverse")
        made = (example.experiment(), example.experiment("new-ranker"), drafted, stopped)
        self.experiments = {one.definition.key: one for one in made}
        self.reports: dict[str, Report] = {
            "diverse-home": example.report(),
            "new-ranker": example.blocked(),
            "longer-slates": example.empty("longer-slates"),
            "bts-against-random": example.report("bts-against-random"),
        }
        self.waits: dict[str, str] = {}
        self.entries: dict[str, list[AuditEntry]] = {}
        self.users: dict[str, UserPage] = {"ann": example.user()}
        self._log("diverse-home", "create", "key:ops", {"owner": "Mei Lin"})
        self._log("diverse-home", "start", "proxy:mei@example.com", {"phase": 0})

    async def list(self) -> Sequence[ExperimentRow]:
        return [
            ExperimentRow(
                experiment=one,
                health=self._health(key),
                units=sum(variant.units for variant in self.reports[key].variants),
                simulated=self.reports[key].simulated,
                as_of_us=self.reports[key].as_of_us,
            )
            for key, one in self.experiments.items()
        ]

    async def get(self, key: str) -> RegisteredExperiment:
        if key not in self.experiments:
            raise NotFound(f"there is no experiment {key[:64]!a}")
        return self.experiments[key]

    async def report(self, key: str) -> Report:
        await self.get(key)
        return self.reports[key]

    async def audit(self, key: str) -> Sequence[AuditEntry]:
        await self.get(key)
        return self.entries.get(key, [])

    async def create(self, experiment: RegisteredExperiment, actor: str) -> RegisteredExperiment:
        key = experiment.definition.key
        if key in self.experiments:
            raise Conflict(f"there is an experiment {key!a} already")
        made = replace(experiment, created_at_us=NOW_US, updated_at_us=NOW_US)
        self.experiments = {key: made, **self.experiments}
        self.reports[key] = example.empty(key)
        self._log(key, "create", actor, {})
        return made

    async def edit(self, key: str, experiment: RegisteredExperiment, actor: str) -> None:
        definition = replace(experiment.definition, status=self.experiments[key].definition.status)
        self.experiments[key] = replace(experiment, updated_at_us=self.experiments[key].updated_at_us)
        self._change(key, "edit", actor, {}, definition=definition)

    async def start(self, key: str, actor: str) -> None:
        self._become(key, Status.RUNNING, "start", actor)

    async def stop(self, key: str, actor: str) -> None:
        self._become(key, Status.STOPPED, "stop", actor)

    async def ship(self, key: str, variant: str, actor: str) -> None:
        self._change(key, "ship", actor, {"variant": variant}, shipped=variant)

    async def roll_back(self, key: str, actor: str) -> None:
        self._change(key, "roll_back", actor, {}, shipped=None)

    async def kill_variant(self, key: str, variant: str, actor: str) -> None:
        killed = definitions.kill_variant(self.experiments[key].definition, variant)
        self._change(key, "kill_variant", actor, {"variant": variant}, definition=killed)

    async def new_phase(self, key: str, phase: NewPhase, actor: str) -> None:
        after = definitions.next_phase(
            self.experiments[key].definition,
            phase.weights,
            phase.coverage,
            seed=phase.seed,
            keep_out_earlier=phase.keep_out_earlier,
        )
        self._change(key, "new_phase", actor, {"weights": phase.weights}, definition=after)

    async def waiting(self, experiment: RegisteredExperiment) -> str | None:
        return self.waits.get(experiment.definition.key)

    async def metrics(self) -> Sequence[MetricChoice]:
        return [MetricChoice(metric=one.metric, title=one.title) for one in example.report().metrics]

    async def user(self, user_id: str) -> UserPage:
        if user_id not in self.users:
            raise NotFound("no store knows this user")
        return self.users[user_id]

    def _become(self, key: str, status: Status, action: str, actor: str) -> None:
        definition = replace(self.experiments[key].definition, status=status)
        self._change(key, action, actor, {}, definition=definition)

    def _change(self, key: str, action: str, actor: str, detail: Mapping[str, Any], **changes: Any) -> None:
        before = self.experiments[key]
        self.experiments[key] = replace(before, updated_at_us=before.updated_at_us + 1, **changes)
        self._log(key, action, actor, detail)

    def _log(self, key: str, action: str, actor: str, detail: Mapping[str, Any]) -> None:
        entry = AuditEntry(at_us=NOW_US, actor=actor, action=action, detail=detail)
        self.entries[key] = [entry, *self.entries.get(key, [])]

    def _health(self, key: str) -> Health:
        report = self.reports[key]
        if report.as_of_us is None:
            return Health.NO_DATA
        return Health.BLOCKED if is_blocked(report) else Health.HEALTHY


def application(
    port: FakePort,
    keys: FakeKeys | None = None,
    settings: DashboardSettings | None = None,
    now_s: Callable[[], float] = lambda: NOW_US / 1e6,
    *,
    jobs: JobDesk | None = None,
) -> FastAPI:
    """`keys` None: none are set up, and the dashboard is open to this machine."""
    metrics = Metrics("test")
    root = Settings()
    state = {
        "settings": root,
        "keys": keys or FakeKeys({}),
        "dashboard": Dashboard(port, SignIn(settings or DashboardSettings(), SECRET), now_s),
        "jobs": jobs,
    }

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield state

    app = create_app(
        title="dashboard", lifespan=lifespan, settings=root, service="test", metrics=metrics,
        max_body_bytes=64 * 1024, ready=lambda: Readiness(True, {}),
    )  # fmt: skip
    app.include_router(pages.router())
    return app
