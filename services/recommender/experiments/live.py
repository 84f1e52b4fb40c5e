"""The running experiments as requests read them: compiled, by scene, immutable. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from services.recommender.experiments.definitions import Experiment
from services.recommender.experiments.holdouts import Holdout
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.filters import Targeting, compile_targeting
from shared.contracts.variant_release import SETTING, VariantRelease
from shared.schema import Schema

CONTEXT = "context."
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Shipped:
    """Settings of a variant that are in force for everybody; `scenes` empty: in all. `namespace` (of its experiment;
    empty: none) and `at_us` decide whether a holdout keeps them from its units; 0: from before every holdout."""

    experiment: str
    variant: str
    scenes: frozenset[str]
    settings: Mapping[str, Any]
    namespace: str = ""
    at_us: int = 0


@dataclass(frozen=True, slots=True)
class LiveExperiment:
    definition: Experiment
    scenes: frozenset[str] = frozenset()
    targeting: Targeting | None = None
    segment_by: str | None = None
    started_at_us: int = 0
    releases: frozenset[VariantRelease] = frozenset()

    @classmethod
    def of(cls, registered: RegisteredExperiment, schema: Schema) -> LiveExperiment:
        """Raises FilterInvalid when a declared field that targeting asks for has gone."""
        text = registered.targeting
        targeting = None if text is None else compile_targeting(text, schema)
        return cls(
            registered.definition,
            frozenset(registered.scenes),
            targeting,
            registered.segment_by,
            registered.started_at_us or 0,
            frozenset(releases_of(registered.definition)),
        )

    @property
    def keeps_buckets(self) -> bool:
        return self.definition.fallback_unit is not None

    @property
    def reads_user(self) -> bool:
        """Whether an assignment needs what Redis knows: the profile, or sticky buckets."""
        targets = self.targeting is not None and self.targeting.reads_user
        splits = self.segment_by is not None and not self.segment_by.startswith(CONTEXT)
        return targets or splits or self.keeps_buckets


@dataclass(frozen=True, slots=True)
class SceneExperiments:
    """What a request of one scene needs. `shipped`: merged settings, the last one shipped wins; `entries` are what
    they were merged of. `experiments` has the holdouts too, as what they report."""

    experiments: tuple[LiveExperiment, ...] = ()
    shipped: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    reads_user: bool = False
    keeps_buckets: bool = False
    holdouts: tuple[Holdout, ...] = ()
    releases: frozenset[VariantRelease] = frozenset()
    entries: tuple[Shipped, ...] = ()

    def shipped_to(self, held_by: Sequence[Holdout]) -> Mapping[str, Any]:
        """Without what came from the experiments that these holdouts cover, since they began."""
        if not held_by:
            return self.shipped
        return _merged(
            entry
            for entry in self.entries
            if not any(one.covers_namespace(entry.namespace) and entry.at_us >= one.started_at_us for one in held_by)
        )


@dataclass(frozen=True, slots=True)
class Live:
    """One consistent picture of experiments and shipped settings, by scene."""

    by_scene: Mapping[str, SceneExperiments] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, experiments: Iterable[LiveExperiment], shipped: Iterable[Shipped], scenes: Iterable[str]) -> Live:
        running, entries = tuple(experiments), tuple(shipped)
        found: dict[str, SceneExperiments] = {}
        for scene in scenes:
            own = tuple(one for one in running if not one.scenes or scene in one.scenes)
            shipped = tuple(entry for entry in entries if not entry.scenes or scene in entry.scenes)
            if own or shipped:
                found[scene] = SceneExperiments(
                    own,
                    _merged(shipped),
                    any(one.reads_user for one in own),
                    any(one.keeps_buckets for one in own),
                    tuple(Holdout(one.definition, one.started_at_us) for one in own if one.definition.holdout),
                    frozenset().union(*(one.releases for one in own)),
                    shipped,
                )
        return cls(MappingProxyType(found))

    def scene(self, name: str) -> SceneExperiments | None:
        """None when nothing runs and nothing was shipped there: such a request pays one dictionary look-up."""
        return self.by_scene.get(name)


def releases_of(definition: Experiment) -> Iterator[VariantRelease]:
    """Of variants that somebody may still meet."""
    for variant in definition.variants:
        release = VariantRelease.of(variant.settings.get(SETTING))
        if release is not None and not variant.killed:
            yield release


def _merged(entries: Iterable[Shipped]) -> Mapping[str, Any]:
    settings: dict[str, Any] = {}
    for entry in entries:
        settings |= entry.settings
    return MappingProxyType(settings)
