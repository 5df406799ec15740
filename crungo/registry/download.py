"""Filling a blob's file from a registry: only what is missing, in ranges where that helps, going on after each break.

A large blob is fetched in segments, in order, so that whoever reads the file from its beginning (the unpacker) can
follow closely. One connection fetches them one after another; others join while connections are idle and the first is
slow, which is when a server or a long way limits each connection, and not our own processor.

Invariant: what is written lies within the blob's size; the digest is the caller's to check.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import httpcore

from crungo.errors import DigestMismatch, RegistryError
from crungo.registry.groups import single_failure
from crungo.registry.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from crungo.image.blobs import Part, Segment
    from crungo.image.reference import Reference
    from crungo.registry.blobs import BlobStream
    from crungo.registry.client import RegistryClient
    from crungo.registry.line import Line
    from crungo.registry.progress import Tracker
    from crungo.registry.retry import RetryPolicy

__all__ = ["Download"]

_MOST_CONNECTIONS = 4  # per blob
_MOST_SLOW_CONNECTIONS = 8
_FAST = 100e6  # bytes per second, of one connection: no other would help
_SLOW = 10e6
_BATCH = 128 << 10  # bytes collected before they are written …
_DELAY = 0.005  # … unless the last write was so many seconds ago; what is not written yet, a SIGKILL loses
_MOST_PIECES = 512  # pwritev(2) takes 1024
# What servers say to a range that know of none and do not just ignore it; 206: they send another one.
_NO_RANGES = frozenset({206, 400, 416, 501})
_PROGRESS = 64 << 10  # bytes after which a broken connection counts as a new first failure


class Download:
    """One blob on its way into its part.

    ``available`` is called with the length of the gapless beginning, whenever it has grown; never twice at once.
    """

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        digest: str,
        part: Part,
        *,
        line: Line,
        retry: RetryPolicy,
        tracker: Tracker,
        available: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._reference = reference
        self._digest = digest
        self._part = part
        self._line = line
        self._retry = retry
        self._tracker = tracker
        self._available = available
        self._missing: deque[tuple[int, int]] = deque()  # and nobody is fetching it
        self._rate: float | None = None
        self._sequential = False
        self._has_ranges: bool | None = None  # the server, as far as it is known
        self._helpers = 0
        self._announced = 0
        self._announcing = False

    async def run(self) -> None:
        """Fetch all that is missing.

        Raises:
            RegistryError: the registry refused, or broke off more often than the policy allows.
            DigestMismatch: the registry's blob is not of the size that the manifest says.
            StoreError: it could not be written.
        """
        here = self._part.extents.total()
        self._line.left -= here
        self._tracker.at("downloading", here)
        await self._announce()
        while self._plan():
            self._helpers = 0
            with single_failure():
                async with anyio.create_task_group() as self._group:
                    self._line.downloads.append(self)
                    try:
                        await self._work()
                    finally:
                        self._line.downloads.remove(self)

    def _plan(self) -> bool:
        """Find what is missing; False when nothing is."""
        self._missing.clear()
        for start, end in self._part.extents.gaps(self._part.size):
            if self._sequential:
                self._missing.append((start, self._part.size))
                break
            self._missing.append((start, end))
        return bool(self._missing)

    def help(self) -> bool:
        """Let another connection fetch segments of this blob as well, if there is one and that helps."""
        rate = self._line.rate() if self._rate is None else self._rate
        if rate is None or rate >= _FAST or self._sequential or not self._missing:
            return False
        most = _MOST_CONNECTIONS if rate >= _SLOW else _MOST_SLOW_CONNECTIONS
        if self._helpers >= most - 1 or self._line.connections.value == 0:
            return False
        self._helpers += 1
        self._group.start_soon(self._help)
        return True

    def _cut(self) -> tuple[int, int]:
        """The next segment: its start and its end."""
        start, end = self._missing.popleft()
        length = self._line.length()
        if not self._sequential and end - start > length + length // 2:  # no small remainder
            self._missing.appendleft((start + length, end))
            end = start + length
        self._line.left -= end - start
        return start, end

    async def _work(self) -> None:
        """Fetch segments until none is left; let others join where that helps. Errors are the blob's."""
        backoff = Backoff(policy=self._retry)
        self._line.workers += 1
        try:
            while self._missing:
                await self._next(backoff)
                self.help()
        finally:
            self._line.workers -= 1
        self._line.freed()

    async def _help(self) -> None:
        """Fetch segments as well. A refused further connection is no failure: what it leaves is planned again."""
        with suppress(RegistryError):
            await self._work()

    async def _next(self, backoff: Backoff) -> None:
        """Fetch the next segment, and see how fast it comes."""
        start, end = self._cut()
        worked = await self._fetch(start, end, backoff)
        self._rate = (end - start) / max(worked, 1e-6)

    async def _fetch(self, start: int, end: int, backoff: Backoff) -> float:
        """Fetch one segment, going on where a connection broke off; for how many seconds connections were at it."""
        segment = self._part.segment(start)
        worked = 0.0
        while segment.position < end:
            before = segment.position
            try:
                async with self._line.connections:
                    began = time.monotonic()
                    await self._receive(segment, end)
                    worked += time.monotonic() - began
            except RegistryError as error:
                if segment.position - before >= _PROGRESS:
                    backoff.progressed()
                await backoff.again(error, tell=self._tracker.again)
            if self._sequential:
                end = self._part.size
        return worked

    async def _receive(self, segment: Segment, end: int) -> None:
        """One request, and what comes of it."""
        size = self._part.size
        position = segment.position
        asked = None if end == size or self._sequential else end
        async with self._opened(position, asked) as stream:
            if stream is None:
                return  # once more, without a range
            if stream.total is not None and stream.total != size:
                raise DigestMismatch(
                    f"blob {self._digest}: {self._reference.registry} has {stream.total} bytes, the manifest says "
                    f"{size}"
                )
            if not stream.ranged and not self._sequential:
                self._sequential = True
                self._missing.clear()
                if asked is not None:
                    return  # once more, to the end
            await self._copy(stream, segment, size if self._sequential else end)
        if segment.position < (stream.end or end):
            short = httpcore.RemoteProtocolError(f"ended after {segment.position - position} bytes")
            raise RegistryError(f"blob {self._digest}: {self._reference.registry}: {short}") from short

    @asynccontextmanager
    async def _opened(self, start: int, end: int | None) -> AsyncIterator[BlobStream | None]:
        """A part of the blob; None where the server turns out to refuse ranges."""
        opening = self._client.open_blob(
            self._reference,
            self._digest,
            start=start,
            end=end,
            whole=self._has_ranges is False,
            tell=self._tracker.again,
        )
        async with AsyncExitStack() as stack:
            stream: BlobStream | None = None
            try:
                stream = await stack.enter_async_context(opening)
            except RegistryError as error:
                if error.status not in _NO_RANGES or self._has_ranges is not None or (start == 0 and end is None):
                    raise
                self._has_ranges, self._sequential = False, True
                self._missing.clear()
            else:
                if stream.ranged and (start or end is not None):
                    self._has_ranges = True
            yield stream

    async def _copy(self, stream: BlobStream, segment: Segment, end: int) -> None:
        pieces: list[bytes] = []
        length = 0
        written = time.monotonic()
        try:
            async for chunk in stream.chunks():
                pieces.append(chunk)
                length += len(chunk)
                if segment.position + length > end:
                    raise DigestMismatch(
                        f"blob {self._digest}: {self._reference.registry} sends more than the {self._part.size} bytes "
                        "that the manifest says"
                    )
                if length >= _BATCH or len(pieces) >= _MOST_PIECES or time.monotonic() - written > _DELAY:
                    taken, pieces, length = (pieces, length), [], 0
                    await self._write(segment, *taken)
                    written = time.monotonic()
        except RegistryError:
            await self._write(segment, pieces, length)  # what came before the break need not come again
            raise
        await self._write(segment, pieces, length)

    async def _write(self, segment: Segment, pieces: list[bytes], length: int) -> None:
        if not length:
            return
        await segment.write(pieces, length)
        self._line.received += length
        self._tracker.at("downloading", self._part.extents.total())
        await self._announce()

    async def _announce(self) -> None:
        if self._available is None or self._announcing:
            return  # whoever is announcing looks again when it is done
        self._announcing = True
        try:
            while (prefix := self._part.extents.prefix()) > self._announced:
                self._announced = prefix
                await self._available(prefix)
        finally:
            self._announcing = False
