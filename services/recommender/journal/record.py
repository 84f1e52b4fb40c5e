"""What is kept of a slate: enough to show it again, to explain it and to estimate off-policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from services.recommender.domain import SlateItem, source_names
from services.recommender.journal.segment import UnknownFormat

RECORD_FORMAT = 2
# Format 1 ends before `experiments`; a journal of the release before may wait on disk.
_OLDER = {1: 15}
US_PER_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSlate:
    """Columns over `position`: item_index, score, propensity, source_bits, all of one length.

    `request` becomes the column `recommendations.request`: `body` (as sent, without tokens), `sources` (names of
    source_bits), `rung`, `actions` and `scores [n][A]`, `reasons`, `last_event_id`; `filtered [[item_index, stage,
    rule]]` when the request asked `explain`; `exploration {epsilon, pool}` when it explored; `experiments [[key, phase,
    variant]]` with all variants it met, forced ones too.

    `experiments` {experiment, phase, unit, variant, segment, simulated} are the assignments that are data, `measures`
    {ild, novelty} what the slate was like; both go to the experiments' own tables. `failed`: the request ended in a 5xx
    and no slate was served; only its experiments are kept.
    """

    recommendation_id: str
    user_key: str
    scene: str
    served_at_us: int
    release: str
    model_version: str | None
    index_version: str | None
    took_us: int
    degraded: Sequence[Mapping[str, str]]
    request: Mapping[str, Any]
    seed: int
    item_index: npt.ArrayLike
    score: npt.ArrayLike
    propensity: npt.ArrayLike
    source_bits: npt.ArrayLike
    experiments: Sequence[Mapping[str, Any]] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)
    failed: bool = False

    @property
    def served_day(self) -> int:
        return self.served_at_us // US_PER_DAY

    def rows(self) -> list[SlateItem]:
        """The items as whoever shows them needs them; scores and reasons are empty where the rung had none."""
        document = self.request
        sources, actions = document.get("sources", ()), document.get("actions", ())
        scores, reasons = document.get("scores", ()), document.get("reasons", ())
        columns = (self.item_index, self.score, self.propensity, self.source_bits)
        columns_of_items = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
        return [
            SlateItem(
                item_index=item_index,
                position=position,
                score=score,
                scores=dict(zip(actions, scores[position], strict=False)) if position < len(scores) else {},
                retrieve_ids=source_names(int(bits), sources),
                reasons=tuple(reasons[position]) if position < len(reasons) else (),
                propensity=propensity,
            )
            for position, (item_index, score, propensity, bits) in enumerate(columns_of_items)
        ]


_FIELDS = tuple(ServedSlate.__slots__)


def encode(slate: ServedSlate) -> bytes:
    """About 20 µs for 10 items: numpy columns are written as they are. Raises TypeError for what is no JSON."""
    return orjson.dumps([RECORD_FORMAT, *(getattr(slate, name) for name in _FIELDS)], option=orjson.OPT_SERIALIZE_NUMPY)


def decode(payload: bytes) -> ServedSlate:
    """Raises UnknownFormat for what another release wrote, ValueError or TypeError for what is no record."""
    values = orjson.loads(payload)
    if not isinstance(values, list) or not values:
        raise ValueError("a journal record must be a list")
    if values[0] != RECORD_FORMAT and values[0] not in _OLDER:
        raise UnknownFormat(f"a record is of format {values[0]!a}, and this release reads up to {RECORD_FORMAT}")
    fields = _FIELDS[: _OLDER.get(values[0], len(_FIELDS))]
    if len(values) != len(fields) + 1:
        raise ValueError(f"a journal record has {len(fields) + 1} values, not {len(values)}")
    slate = ServedSlate(**dict(zip(fields, values[1:], strict=True)))
    lengths = {np.shape(column) for column in (slate.item_index, slate.score, slate.propensity, slate.source_bits)}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise ValueError(f"the columns of slate {slate.recommendation_id!a} differ in length")
    return slate
