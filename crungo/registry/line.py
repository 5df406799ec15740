"""What the downloads of a pull share: how many connections are at work, and how much each asks for at a time.

A connection that ends its work long before the others leaves the line to them, and each of them goes on with the share
that it had. So none is idle while there is anything to ask for, of whatever blob; and what each asks for gets shorter
towards the end of the pull. What one connection of many does is no measure for that: they are as different as a
congestion control makes them, and a fast one asks more often.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Download", "Line"]

_FIRST_SEGMENT = 4 << 20  # bytes, of a blob whose connections nothing is known of …
_STAGGER = 8  # … and of so many lengths, up to twice that: where all end at once, the line waits for the next requests
_SHORTEST_SEGMENT = 256 << 10
_LONGEST_SEGMENT = 16 << 20
_SHORTEST = 0.12  # seconds that a segment should take: a round trip must be little of it …
_LONGEST = 1.0  # … and a connection that turns out to be slow should not have it for long
_SHARE = 0.5  # … being this part of the time that is left
_WINDOW = 1.0  # seconds; the line's rate is that of the last one or two


class Download(Protocol):
    """One that another connection may help with."""

    def help(self) -> bool:
        """Let another connection join, if there is one and that helps; whether it does."""
        ...


class Line:
    """``connections`` at once, and the bytes that nobody has asked for yet.

    ``left`` is an estimate: another process may fetch some of them, and what broke off is asked for again. ``received``
    counts the bytes that came, ``workers`` those who fetch one segment after the other.
    """

    def __init__(self, connections: int, left: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.connections = anyio.Semaphore(connections, fast_acquire=True)
        self.left = left
        self.received = 0
        self.workers = 0
        self.downloads: list[Download] = []
        self._clock = clock
        self._begun = 0
        self._mark = self._earlier_mark = (clock(), 0)

    def freed(self) -> None:
        """One has no more to fetch of its blob: its connection is free for those of the others, the oldest first."""
        for download in self.downloads:
            if download.help():
                break

    def rate(self) -> float | None:
        """How fast a connection is, in bytes per second: on average, lately. None when nothing much has come yet."""
        if self.received < _FIRST_SEGMENT:
            return None
        now = self._clock()
        if now - self._mark[0] > _WINDOW:
            self._earlier_mark, self._mark = self._mark, (now, self.received)
        since, before = self._earlier_mark
        return max(self.received - before, 1) / max(now - since, 1e-6) / max(self.workers, 1)

    def length(self) -> int:
        """How many bytes the next segment should have."""
        rate = self.rate()
        if rate is None:
            self._begun += 1
            return _FIRST_SEGMENT + _FIRST_SEGMENT * ((self._begun - 1) % _STAGGER) // _STAGGER
        until_end = self.left / rate / max(self.workers, 1)  # seconds
        seconds = min(_LONGEST, max(_SHORTEST, _SHARE * until_end))
        return min(_LONGEST_SEGMENT, max(_SHORTEST_SEGMENT, int(seconds * rate)))
