"""Which pages of a pool are free. Numbers only: what a page holds lies elsewhere."""

from __future__ import annotations


class PagePool:
    """Pages 0 to `total` - 1. Those freed last are given first: they are warm in the processor's caches."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """None when fewer than `count` are free; then none is taken."""
        if count > len(self._free):
            return None
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def give(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))

    def free_pages(self) -> list[int]:
        """A copy, for integrity checks."""
        return list(self._free)
