"""Action codes: the one table that turns (event type, event value) into the INT8 of histories, tensors and the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shared.schema import Schema

NO_ACTION = 0


@dataclass(frozen=True, slots=True)
class Action:
    """`popularity` is the weight of one such event in the popular source."""

    name: str
    code: int
    event_type: str
    in_history: bool
    marks_seen: bool
    sentiment: str
    popularity: float
    below: float | None = None


@dataclass(frozen=True, slots=True)
class ActionTable:
    """Immutable; built once from the schema."""

    by_code: Mapping[int, Action]
    by_name: Mapping[str, Action]
    _bands: Mapping[str, tuple[Action, ...]] = field(repr=False)

    @classmethod
    def from_schema(cls, schema: Schema) -> ActionTable:
        bands: dict[str, tuple[Action, ...]] = {}
        for event_type, declared in schema.event_types.items():
            common = (event_type, declared.in_history, declared.marks_seen)
            if declared.code is not None:
                bands[event_type] = (
                    Action(event_type, declared.code, *common, declared.sentiment, declared.popularity),
                )
                continue
            bands[event_type] = tuple(
                Action(
                    band.name,
                    band.code,
                    *common,
                    band.sentiment or declared.sentiment,
                    declared.popularity if band.popularity is None else band.popularity,
                    band.below,
                )
                for band in declared.bands
            )
        actions = [action for group in bands.values() for action in group]
        return cls({a.code: a for a in actions}, {a.name: a for a in actions}, bands)

    def __iter__(self) -> Iterator[Action]:
        return iter(self.by_code.values())

    @property
    def event_types(self) -> tuple[str, ...]:
        return tuple(self._bands)

    def resolve(self, event_type: str, event_value: float | None) -> Action | None:
        """The action of an event, or None for an undeclared type or a banded type without a value."""
        group = self._bands.get(event_type)
        if group is None:
            return None
        if len(group) == 1 and group[0].below is None:
            return group[0]
        if event_value is None:
            return None
        return next(action for action in group if action.below is None or event_value < action.below)
