"""Whether an item can be retrieved yet, and if not, why: `index_status` of every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.features.items.index_content import ActiveIndexes, IndexContent, IndexContents
from services.features.items.store import StoredItem
from services.features.items.times import format_time

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """`index_version`: since which version the item can be retrieved; None while it cannot. `visible` None: this host
    cannot tell. `reason` and `detail` say what stands in the way."""

    visible: bool | None
    index_version: str | None = None
    reason: str | None = None
    detail: str | None = None


class IndexStatuses:
    """`fresh_days`: the age up to which the fresh source proposes items that no index holds yet."""

    def __init__(self, contents: IndexContents, fresh_days: float) -> None:
        self._contents = contents
        self._fresh_us = int(fresh_days * _DAY_US)

    def of(self, found: Sequence[StoredItem], active: ActiveIndexes, now_us: int) -> list[IndexStatus]:
        """One an item, in order. Reads files when an index is new."""
        if not active.versions:
            return [_blocked(item, now_us) or self._without_index(item, active, now_us) for item in found]
        content = self._contents.open(*active.versions[0])
        held = content.holds(found)
        since = self._since(found, held, active)
        return [
            _blocked(item, now_us) or self._status(item, content, is_held, version, now_us)
            for item, is_held, version in zip(found, held, since, strict=True)
        ]

    def _since(self, found: Sequence[StoredItem], held: Sequence[bool | None], active: ActiveIndexes) -> list[str]:
        """The oldest version of the unbroken run that holds each item; the active one for those that are not held."""
        since = [active.versions[0][0]] * len(found)
        going = [place for place, is_held in enumerate(held) if is_held]
        for version, registered in active.versions[1:]:
            if not going:
                break
            older = self._contents.open(version, registered).holds([found[place] for place in going])
            going = [place for place, is_held in zip(going, older, strict=True) if is_held]
            for place in going:
                since[place] = version
        return since

    def _status(self, item: StoredItem, index: IndexContent, held: bool | None, since: str, now_us: int) -> IndexStatus:
        if held:
            return IndexStatus(True, since)
        if held is None:
            detail = f"the files of index {index.version} cannot be read on this host"
            return IndexStatus(None, None, "index_unreadable", detail)
        if not item.known:
            detail = "only seen in events; PUT its content, so that an index can hold it"
            return IndexStatus(False, None, "content_unknown", detail)
        knew = -1 if index.manifest is None else index.manifest.catalogue_version
        if item.revision > knew:
            detail = f"index {index.version} was made before this item was last changed; the next one can hold it"
            return IndexStatus(False, None, "newer_than_index", detail + self._meanwhile(item, now_us))
        detail = f"index {index.version} knew this item and left it out: nothing placed it among the others"
        return IndexStatus(False, None, "left_out_of_index", detail + self._meanwhile(item, now_us))

    def _without_index(self, item: StoredItem, active: ActiveIndexes, now_us: int) -> IndexStatus:
        if active.promoted:
            detail = "the active release has no index"
            return IndexStatus(False, None, "no_index", detail + self._meanwhile(item, now_us))
        return IndexStatus(False, None, "no_release", "no release is active yet" + self._meanwhile(item, now_us))

    def _meanwhile(self, item: StoredItem, now_us: int) -> str:
        created_at_us = item.content.created_at_us
        fresh = item.known and created_at_us is not None and now_us - self._fresh_us < created_at_us <= now_us
        return "; until then the fresh source may propose it" if fresh else ""


def _blocked(item: StoredItem, now_us: int) -> IndexStatus | None:
    """What keeps an item out of every slate, whatever the index holds."""
    begins, ends = item.content.available_from_us, item.content.available_until_us
    if item.deleted_at_us is not None:
        return IndexStatus(False, None, "deleted", f"deleted at {format_time(item.deleted_at_us)}; a PUT revives it")
    if item.content.is_hidden:
        return IndexStatus(False, None, "hidden", "is_hidden is set")
    if begins is not None and begins > now_us:
        return IndexStatus(False, None, "not_available_yet", f"available from {format_time(begins)}")
    if ends is not None and ends <= now_us:
        return IndexStatus(False, None, "no_longer_available", f"was available until {format_time(ends)}")
    return None
