"""The digest of a blob while it comes, taken where nobody parses it.

A blob's unpacker reads bytes that nobody has vouched for yet. Should they take it over, it must not be the one who says
that they are the right ones.
"""

from __future__ import annotations

import os

import anyio
import anyio.to_thread

from crungo.image.digest import hasher

__all__ = ["GrowingHash"]

_PIECE = 1 << 20
_LAG = 4 << 20  # bytes that are worth the way to a thread


class GrowingHash:
    """The digest (by the algorithm of ``digest``) of an open file that is written from its beginning on."""

    def __init__(self, fd: int, digest: str) -> None:
        self._fd = fd
        self._state = hasher(digest)
        self._done = 0
        self._available = 0
        self._ended = False
        self._news = anyio.Event()

    def advance(self, available: int, *, ended: bool = False) -> None:
        """The first ``available`` bytes are there, and will not change; ``ended``: no others come."""
        self._available, self._ended = available, ended
        self._news.set()

    async def run(self) -> None:
        """Take the bytes in, in worker threads, until all are in."""
        while not (self._ended and self._done >= self._available):
            if self._ended or self._available - self._done >= _LAG:
                await anyio.to_thread.run_sync(self._take, self._available)
            else:
                self._news = anyio.Event()
                await self._news.wait()

    def found(self) -> tuple[str, int]:
        """The digest of what was taken in, and the size of the file."""
        return f"{self._state.name}:{self._state.hexdigest()}", os.fstat(self._fd).st_size

    def _take(self, end: int) -> None:
        while self._done < end:
            piece = os.pread(self._fd, min(_PIECE, end - self._done), self._done)
            if not piece:
                self._done = end  # it is shorter than was said, which its size tells
                return
            self._state.update(piece)
            self._done += len(piece)
