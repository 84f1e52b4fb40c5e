"""Experiments in the database. Blocking; every change is one transaction: lock, compare, write, audit.

The lock is `counters.experiments`: writers come one after the other, so two that would clash cannot both start. Its
value is the changed experiment's `revision`, by which the followers see that something changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from services.recommender.experiments import definitions
from services.recommender.experiments.definitions import Experiment, Status, conflicting_settings
from services.recommender.experiments.live import Shipped
from services.recommender.experiments.refusals import refuse
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry import shipping
from services.recommender.experiments.registry.checks import check
from services.recommender.experiments.registry.document import dump, parse
from services.recommender.experiments.registry.sql import EXPERIMENTS, write_audit
from shared.contracts.variant_release import MOST, SETTING
from shared.errors import Conflict, NotFound
from shared.schema import Schema
from shared.storage import deployments
from shared.storage.database import Database
from shared.storage.statements import raise_counter
from shared.storage.tables import experiment_audit, experiments
from shared.storage.variant_releases import of_document

AUDIT_ROWS = 500
Change = Callable[[Connection, "StoredExperiment"], tuple[RegisteredExperiment, Mapping[str, Any]]]
"""What an experiment becomes, and what the audit says of it."""


@dataclass(frozen=True, slots=True)
class StoredExperiment:
    """`revision` rises with every change of this experiment; send it back to change what was seen and nothing newer."""

    registered: RegisteredExperiment
    revision: int

    @property
    def key(self) -> str:
        return self.registered.definition.key

    @property
    def status(self) -> Status:
        return self.registered.definition.status


@dataclass(frozen=True, slots=True)
class AuditEntry:
    audit_seq: int
    at_us: int
    actor: str
    action: str
    detail: Mapping[str, Any]


class ExperimentStore:
    """Raises NotFound, Conflict (the state forbids it, or `revision` is no longer the newest), ValidationFailed,
    DatabaseUnavailable. `actor` names who; it is cut at 128 characters."""

    def __init__(
        self, database: Database, schema: Schema, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._database = database
        self._schema = schema
        self._now_us = now_us

    # ---- reading

    def get(self, key: str) -> StoredExperiment:
        with self._database.read() as connection:
            return _load(connection, key)

    def list(self, status: Status | None = None) -> list[StoredExperiment]:
        """Newest first."""
        query = select(experiments).order_by(experiments.c.created_at_us.desc(), experiments.c.experiment)
        if status is not None:
            query = query.where(experiments.c.status == status.value)
        with self._database.read() as connection:
            shipped = shipping.shipped_in(deployments.active(connection))
            return [_stored(row, shipped) for row in connection.execute(query)]

    def audit(self, key: str, limit: int = AUDIT_ROWS) -> Sequence[AuditEntry]:
        """Newest first."""
        table = experiment_audit.c
        query = select(experiment_audit).where(table.experiment == key).order_by(table.audit_seq.desc()).limit(limit)
        with self._database.read() as connection:
            _load(connection, key)
            return [
                AuditEntry(row.audit_seq, row.at_us, row.actor, row.action, row.detail)
                for row in connection.execute(query)
            ]

    # ---- writing

    def create(self, registered: RegisteredExperiment, *, actor: str) -> StoredExperiment:
        """A draft, whatever status it says."""
        draft = replace(registered, definition=replace(registered.definition, status=Status.DRAFT))
        check(draft, self._schema)
        key = draft.definition.key

        def write(connection: Connection) -> StoredExperiment:
            revision = raise_counter(connection, EXPERIMENTS)
            if connection.scalar(select(experiments.c.experiment).where(experiments.c.experiment == key)) is not None:
                raise Conflict(f"there is an experiment {key} already; its data would mix with the new one's")
            now_us = self._now_us()
            values = {"experiment": key, "status": Status.DRAFT.value, "document": dump(draft), "revision": revision}
            times = {"created_at_us": now_us, "updated_at_us": now_us}
            connection.execute(insert(experiments).values(**values, **times))
            write_audit(connection, key, at_us=now_us, actor=actor, action="create", detail=dump(draft))
            return StoredExperiment(replace(draft, created_at_us=now_us, updated_at_us=now_us), revision)

        return self._database.transact(write)

    def edit(
        self, key: str, registered: RegisteredExperiment, *, actor: str, revision: int | None = None
    ) -> StoredExperiment:
        """A draft only: what runs is changed by its own verbs, so that its data stays comparable."""
        if registered.definition.key != key:
            raise refuse("key", f"is {registered.definition.key!a}; an experiment keeps its key")
        check(registered, self._schema)

        def change(_connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            _must_be(stored, "edit", Status.DRAFT)
            before, after = dump(stored.registered), dump(registered)
            return registered, {name: value for name, value in after.items() if before.get(name) != value}

        return self._change(key, "edit", actor, revision, change)

    def start(self, key: str, *, actor: str, revision: int | None = None) -> StoredExperiment:
        def change(connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            _must_be(stored, "start", Status.DRAFT)
            check(stored.registered, self._schema)
            _refuse_clashes(connection, stored.registered)
            _refuse_too_many_releases(connection, stored.registered)
            started = replace(stored.registered, started_at_us=self._now_us())
            return _with(started, status=Status.RUNNING), {"phase": started.definition.phase}

        return self._change(key, "start", actor, revision, change)

    def stop(self, key: str, *, actor: str, revision: int | None = None) -> StoredExperiment:
        def change(_connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            _must_be(stored, "stop", Status.RUNNING)
            return self._stopped(stored.registered), {}

        return self._change(key, "stop", actor, revision, change)

    def kill_variant(self, key: str, variant: str, *, actor: str, revision: int | None = None) -> StoredExperiment:
        def change(_connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            _must_be(stored, "kill a variant of", Status.RUNNING)
            definition = definitions.kill_variant(stored.registered.definition, variant)
            return replace(stored.registered, definition=definition), {"variant": variant}

        return self._change(key, "kill_variant", actor, revision, change)

    def new_phase(
        self,
        key: str,
        *,
        actor: str,
        weights: Sequence[float] | None = None,
        coverage: float | None = None,
        seed: str | None = None,
        keep_out_earlier: bool = False,
        revision: int | None = None,
    ) -> StoredExperiment:
        def change(_connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            _must_be(stored, "begin a phase of", Status.RUNNING)
            before = stored.registered.definition
            if keep_out_earlier and before.fallback_unit is None:
                raise refuse(
                    "keep_out_earlier", "needs sticky buckets, which an experiment keeps only with a fallback_unit"
                )
            after = definitions.next_phase(before, weights, coverage, seed=seed, keep_out_earlier=keep_out_earlier)
            detail = {"phase": after.phase, "weights": [one.weight for one in after.variants]}
            detail |= {"coverage": after.coverage, "seed": after.seed, "keep_out_earlier": keep_out_earlier}
            return replace(stored.registered, definition=after), detail

        return self._change(key, "new_phase", actor, revision, change)

    def ship(self, key: str, variant: str, *, actor: str, revision: int | None = None) -> StoredExperiment:
        """Its settings for everybody in the experiment's scenes, below what a request asks for itself. A running
        experiment is stopped by it, in the same transaction."""

        def change(connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            _must_be(stored, "ship", Status.RUNNING, Status.STOPPED)
            registered = stored.registered
            if registered.definition.holdout is not None:
                raise Conflict(f"{key} is a holdout and has no settings to ship; what its experiments found is theirs")
            position = registered.definition.position(variant)
            if position < 0:
                names = ", ".join(one.key for one in registered.definition.variants)
                raise refuse("variant", f"{variant!a} is none of this experiment's variants; they are {names}")
            settings = registered.definition.variants[position].settings
            if SETTING in settings and registered.scenes:
                raise Conflict(f"a release serves every scene, and {key} tried it in {', '.join(registered.scenes)}")
            space, now_us = registered.definition.namespace, self._now_us()
            namespace = "" if space is None else space.key
            entry = Shipped(key, variant, frozenset(registered.scenes), settings, namespace, now_us)
            made = shipping.put(connection, entry, actor=actor)
            stopped = registered
            if stored.status is Status.RUNNING:
                stopped = self._stopped(registered)
                by_shipping = {"by": "ship"}
                write_audit(connection, key, at_us=now_us, actor=actor, action="stop", detail=by_shipping)
            detail = {"variant": variant, "settings": dict(settings), "deployment": made.version}
            return replace(stopped, shipped=variant), detail

        return self._change(key, "ship", actor, revision, change)

    def roll_back(self, key: str, *, actor: str, revision: int | None = None) -> StoredExperiment:
        """Takes back what was shipped; what others shipped stays."""

        def change(connection: Connection, stored: StoredExperiment) -> tuple[RegisteredExperiment, Mapping[str, Any]]:
            variant = stored.registered.shipped
            if variant is None:
                raise Conflict(f"no variant of {key} is shipped, so there is nothing to roll back")
            made = shipping.remove(connection, key, actor=actor)
            return replace(stored.registered, shipped=None), {"variant": variant, "deployment": made.version}

        return self._change(key, "roll_back", actor, revision, change)

    def _stopped(self, registered: RegisteredExperiment) -> RegisteredExperiment:
        return _with(replace(registered, stopped_at_us=self._now_us()), status=Status.STOPPED)

    def _change(self, key: str, action: str, actor: str, revision: int | None, change: Change) -> StoredExperiment:
        def write(connection: Connection) -> StoredExperiment:
            new_revision = raise_counter(connection, EXPERIMENTS)
            stored = _load(connection, key)
            if revision is not None and revision != stored.revision:
                raise Conflict(
                    f"experiment {key} was changed meanwhile (revision {stored.revision}, not {revision}); look again"
                )
            registered, detail = change(connection, stored)
            now_us = self._now_us()
            before = stored.registered
            registered = replace(registered, created_at_us=before.created_at_us, updated_at_us=now_us)
            values = {"status": registered.definition.status.value, "document": dump(registered)}
            times = {"started_at_us": registered.started_at_us, "stopped_at_us": registered.stopped_at_us}
            connection.execute(
                update(experiments)
                .where(experiments.c.experiment == key, experiments.c.revision == stored.revision)
                .values(**values, **times, revision=new_revision, updated_at_us=now_us)
            )
            write_audit(connection, key, at_us=now_us, actor=actor, action=action, detail=detail)
            return StoredExperiment(registered, new_revision)

        return self._database.transact(write)


def _load(connection: Connection, key: str) -> StoredExperiment:
    row = connection.execute(select(experiments).where(experiments.c.experiment == key)).first()
    if row is None:
        raise NotFound(f"there is no experiment {key!a}")
    return _stored(row, shipping.shipped_in(deployments.active(connection)))


def _stored(row: Row[Any], shipped: Sequence[Shipped]) -> StoredExperiment:
    """What is shipped is read from the deployment alone: a rolled back release must not leave a lie in a document."""
    registered = parse(row.document, status=Status(row.status))
    return StoredExperiment(
        replace(
            registered,
            shipped=next((one.variant for one in shipped if one.experiment == row.experiment), None),
            created_at_us=row.created_at_us,
            updated_at_us=row.updated_at_us,
            started_at_us=row.started_at_us,
            stopped_at_us=row.stopped_at_us,
        ),
        row.revision,
    )


def _must_be(stored: StoredExperiment, verb: str, *wanted: Status) -> None:
    if stored.status not in wanted:
        names = " or ".join(wanted)
        raise Conflict(f"one can {verb} an experiment that is {names}, and {stored.key} is {stored.status}")


def _refuse_clashes(connection: Connection, starting: RegisteredExperiment) -> None:
    running = select(experiments).where(experiments.c.status == Status.RUNNING.value)
    for row in connection.execute(running):
        other = _stored(row, ()).registered
        both = conflicting_settings(starting.definition, other.definition)
        if both and _share_scenes(starting, other):
            names = ", ".join(sorted(both))
            raise Conflict(
                f"experiment {other.definition.key} is running and changes {names} too; stop it first, or give both "
                "disjoint ranges of one namespace"
            )


def _refuse_too_many_releases(connection: Connection, starting: RegisteredExperiment) -> None:
    running = select(experiments.c.document).where(experiments.c.status == Status.RUNNING.value)
    taken = {one for document in connection.scalars(running) for one in of_document(document)}
    needed = taken | set(of_document(dump(starting)))
    if len(needed) > max(MOST, len(taken)):
        raise Conflict(
            f"its variants and those that run would serve {len(needed)} releases beside the active one, and {MOST} "
            "are the most; stop an experiment of releases first"
        )


def _share_scenes(one: RegisteredExperiment, other: RegisteredExperiment) -> bool:
    return not one.scenes or not other.scenes or bool(set(one.scenes) & set(other.scenes))


def _with(registered: RegisteredExperiment, *, status: Status) -> RegisteredExperiment:
    definition: Experiment = replace(registered.definition, status=status)
    return replace(registered, definition=definition)
