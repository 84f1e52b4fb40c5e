"""From a request's strings to a Query: scene, filters, item_index. Everything wrong with a request is said here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.recommender.catalogue import Catalogue
from services.recommender.domain import Promotion, Query
from services.recommender.filters import CompiledFilter, compile_filter
from services.recommender.routes.requests import Common, RankRequest, RecommendRequest
from shared.contracts.history import Int32
from shared.errors import FieldError, FilterInvalid, NotFound, SilkrecError, ValidationFailed
from shared.identity import user_key
from shared.schema import Scene, Schema


@dataclass(frozen=True, slots=True)
class QueryBuilder:
    """One a process; `schema` is the declared one."""

    schema: Schema

    def build(
        self,
        request: RecommendRequest | RankRequest,
        *,
        catalogue: Catalogue,
        count: int,
        deadline: float,
        now_us: int,
        seed: int,
        exclude: Int32,
        pointer: str = "",
    ) -> Query:
        """`count` and `exclude` may be more than the request's own (frozen pages). Raises NotFound for an unknown
        scene, ValidationFailed and FilterInvalid with pointers below `pointer`."""
        scene = self.scene(request.scene)
        _check_properties(catalogue, request.return_properties, pointer)
        values = request.filter_values
        chosen = self._filter(request, pointer)
        return Query(
            user_key=user_key(request.user_id, request.visitor_id),
            scene=request.scene,
            weights=scene.weights,
            count=count,
            deadline=deadline,
            now_us=now_us,
            seed=seed,
            hide_seen=scene.hide_seen and not isinstance(request, RankRequest),
            context_items=_known(catalogue, request.item_ids),
            context=dict(request.context),
            filter=chosen,
            scene_filter=self.scene_filter(scene),
            filter_values=values,
            exclude=np.unique(np.concatenate([exclude, _known(catalogue, request.exclude_item_ids)])),
            promotions=self._promotions(request, pointer),
            diversity=scene.diversity if request.diversity is None else request.diversity,
            exploration=scene.exploration,
            personalized=request.personalized,
            explain=request.explain,
            input_list=_known(catalogue, request.input_list) if isinstance(request, RankRequest) else None,
        )

    def scene(self, name: str) -> Scene:
        scene = self.schema.scenes.get(name)
        if scene is None:
            raise NotFound(f"there is no scene {name!a}; declared: {', '.join(sorted(self.schema.scenes))}")
        return scene

    def scene_filter(self, scene: Scene) -> CompiledFilter | None:
        return None if scene.filter is None else compile_filter(scene.filter, self.schema)

    def filter(self, text: str, pointer: str = "/filter") -> CompiledFilter:
        try:
            return compile_filter(text, self.schema)
        except FilterInvalid as error:
            raise _moved(error, pointer) from None

    def names(self, catalogue: Catalogue, listed: str | None) -> tuple[str, ...]:
        """Of a query parameter with commas. Raises ValidationFailed."""
        names = tuple(name.strip() for name in listed.split(",")) if listed else ()
        _check_properties(catalogue, names, "")
        return names

    def _filter(self, request: Common, pointer: str) -> CompiledFilter | None:
        if request.filter is None:
            return None
        compiled = self.filter(request.filter, f"{pointer}/filter")
        try:
            compiled.bind(request.filter_values)
        except FilterInvalid as error:
            raise _below(error, pointer) from None
        return compiled

    def _promotions(self, request: Common, pointer: str) -> tuple[Promotion, ...]:
        compiled = []
        for place, promotion in enumerate(request.promotions):
            chosen = self.filter(promotion.filter, f"{pointer}/promotions/{place}/filter")
            try:
                chosen.bind(request.filter_values)
            except FilterInvalid as error:
                raise _below(error, pointer) from None
            compiled.append(Promotion(promotion.name, chosen, promotion.percent, promotion.position))
        return tuple(compiled)


def unknown_ids(catalogue: Catalogue, request: RankRequest) -> list[str]:
    """Of `input_list`, each once, in its order."""
    return list(dict.fromkeys(item for item in request.input_list if catalogue.index_of(item) is None))


def _known(catalogue: Catalogue, item_ids: Sequence[str]) -> Int32:
    """Each once, in their order. Items that nobody has seen yet have no index, and nothing to add."""
    found = dict.fromkeys(index for item in item_ids if (index := catalogue.index_of(item)) is not None)
    return np.fromiter(found, np.int32, len(found))


def _check_properties(catalogue: Catalogue, names: Sequence[str], pointer: str) -> None:
    known = catalogue.property_names
    faults = [
        FieldError(
            f"{pointer}/return_properties/{place}",
            f"{name[:64]!a} is no item field; known: {', '.join(sorted(known))}",
            "unknown_field",
        )
        for place, name in enumerate(names)
        if name not in known
    ]
    if faults:
        raise ValidationFailed(faults[0].message, errors=faults)


def _moved(error: FilterInvalid, pointer: str) -> SilkrecError:
    faults = [FieldError(pointer, fault.message, fault.code, fault.position) for fault in error.errors]
    return FilterInvalid(error.detail, errors=faults)


def _below(error: FilterInvalid, pointer: str) -> SilkrecError:
    faults = [FieldError(pointer + fault.pointer, fault.message, fault.code, fault.position) for fault in error.errors]
    return FilterInvalid(error.detail, errors=faults)
