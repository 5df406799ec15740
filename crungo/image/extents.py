"""Which parts of a file are there. Pure.

Invariant: the extents are sorted, disjoint, not adjacent and not empty.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Extents"]


class Extents:
    """A set of byte positions, kept as half-open intervals ``(start, end)``."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in extents:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add the positions from ``start`` up to, not including, ``end``."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)  # the first extent that touches or follows the new one
        last = bisect_right(self._starts, end)  # the first that lies beyond it
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def prefix(self) -> int:
        """How many bytes are there from the beginning on without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """What is missing of the first ``size`` bytes, in order."""
        position = 0
        for start, end in self:
            if start >= size:
                break
            if position < start:
                yield position, start
            position = end
        if position < size:
            yield position, size

    def total(self) -> int:
        """How many bytes are there."""
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)
