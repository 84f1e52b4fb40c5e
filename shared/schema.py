"""What a team declares about its own data in `silkrec.yaml`: scenes, event types, item and user fields.

    scenes:
      home: {weights: {click: 1.0, purchase: 4.0}, hide_seen: true}
    event_types:
      click:  {code: 2}
      rating: {unit: stars, bands: [{name: rating_low, code: 8, below: 3}, {name: rating_high, code: 9}]}
    item_fields:
      brand: {type: string, filterable: true, feature: true}

Codes are written down rather than numbered by order, so that moving a line never changes the meaning of stored data.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
ActionCode = Annotated[int, Field(ge=1, le=127, description="fits the INT8 of the wire; 0 means 'none'")]
FieldType = Literal["string", "number", "boolean", "strings", "timestamp"]


class Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Band(Declared):
    """A range of `event_value` that counts as an action of its own: [previous band's `below`, own `below`)."""

    name: Name
    code: ActionCode
    below: float | None = Field(None, description="exclusive upper bound; the last band leaves it out")
    sentiment: Literal["positive", "neutral", "negative"] | None = None
    popularity: float | None = Field(None, ge=0)


class EventType(Declared):
    code: ActionCode | None = None
    unit: str | None = Field(None, description="unit of event_value: stars, seconds, a currency; none when unused")
    bands: tuple[Band, ...] = ()
    in_history: bool = Field(True, description="false: stored and counted, but not part of the user's history")
    marks_seen: bool = Field(True, description="the item counts as already seen by this user")
    sentiment: Literal["positive", "neutral", "negative"] = "positive"
    popularity: float = Field(1.0, ge=0, description="weight of one such event in the popular source")

    @model_validator(mode="after")
    def _code_or_bands(self) -> Self:
        if (self.code is None) == (not self.bands):
            raise ValueError("give either `code` or `bands`")
        bounds = [band.below for band in self.bands]
        rising = [bound for bound in bounds[:-1] if bound is not None]
        if bounds and (bounds[-1] is not None or None in bounds[:-1] or rising != sorted(set(rising))):
            raise ValueError("`below` must rise from band to band, and only the last band leaves it out")
        return self


class Scene(Declared):
    """A place of the front end. `weights` turn action probabilities into one score: score = sum of weight x p."""

    weights: dict[Name, float] = Field(min_length=1)
    hide_seen: bool = Field(True, description="drop items the user already acted on (events with marks_seen)")
    filter: str | None = Field(None, description="an expression every slate of the scene obeys")
    diversity: float = Field(0.0, ge=0, le=1)
    exploration: float = Field(0.0, ge=0, le=0.5, description="epsilon: share of slots drawn from the pool at random")


class ItemField(Declared):
    type: FieldType
    filterable: bool = True
    feature: bool = Field(False, description="its values become content tokens of the model")


class UserField(Declared):
    type: FieldType


class Schema(Declared):
    scenes: dict[Name, Scene] = Field(default_factory=lambda: {"home": Scene(weights={"click": 1.0, "purchase": 4.0})})
    event_types: dict[Name, EventType] = Field(default_factory=lambda: dict(DEFAULT_EVENT_TYPES), min_length=1)
    item_fields: dict[Name, ItemField] = Field(default_factory=dict)
    user_fields: dict[Name, UserField] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names: dict[str, str] = {}
        codes: dict[int, str] = {}
        for event_name, event in self.event_types.items():
            actions = [(b.name, b.code) for b in event.bands] or [(event_name, event.code or 0)]
            for name, code in actions:
                if name in names:
                    raise ValueError(f"event_types: action {name!r} is declared twice")
                if code in codes:
                    raise ValueError(f"event_types: code {code} is used by {codes[code]!r} and {name!r}")
                names[name], codes[code] = event_name, name
        for scene_name, scene in self.scenes.items():
            for action in scene.weights:
                if action not in names:
                    raise ValueError(f"scenes.{scene_name}.weights: {action!r} is no action; known: {', '.join(names)}")
        taken = set(self.item_fields) & CORE_ITEM_FIELDS
        if taken:
            raise ValueError(f"item_fields: {', '.join(sorted(taken))} exist already and need no declaration")
        return self


CORE_ITEM_FIELDS = frozenset(
    {"item_id", "item_type", "title", "categories", "category", "is_hidden", "price", "currency"}
    | {"available_from", "available_until", "created_at"}
)

DEFAULT_EVENT_TYPES: dict[str, EventType] = {
    "impression": EventType(code=1, in_history=False, marks_seen=False, sentiment="neutral", popularity=0.0),
    "click": EventType(code=2, marks_seen=False),
    "view": EventType(code=3, unit="seconds", marks_seen=False),
    "add_to_cart": EventType(code=4, popularity=2.0),
    "purchase": EventType(code=5, unit="currency", popularity=4.0),
    "like": EventType(code=6, popularity=2.0),
    "dislike": EventType(code=7, sentiment="negative", popularity=0.0),
    "not_interested": EventType(code=8, sentiment="negative", popularity=0.0),
    "rating": EventType(
        unit="stars",
        bands=(
            Band(name="rating_low", code=9, below=3.0, sentiment="negative", popularity=0.0),
            Band(name="rating_mid", code=10, below=4.0, sentiment="neutral"),
            Band(name="rating_high", code=11, popularity=2.0),
        ),
    ),
    "watch": EventType(code=12, unit="seconds"),
    "share": EventType(code=13, popularity=2.0),
}
