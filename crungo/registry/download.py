"""Filling a blob's file from a registry: only what is missing, in ranges where that helps, going on after each break.

A large blob is fetched in segments, in order, so that whoever reads the file from its beginning (the unpacker) can
follow closely. One connection fetches them one after another; others join while connections are idle and the first is
slow, which is when a server or a long way limits each connection, and not our own processor.

Invariant: what is written lies within the blob's size; the digest is the caller's to check.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import anyio
import httpx

from crungo.errors import DigestMismatch, RegistryError
from crungo.registry.groups import single_failure
from crungo.registry.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crungo.image.blobs import Part, Segment
    from crungo.image.reference import Reference
    from crungo.registry.blobs import BlobStream
    from crungo.registry.client import RegistryClient
    from crungo.registry.progress import Tracker
    from crungo.registry.retry import RetryPolicy

__all__ = ["Download"]

_SEGMENT = 16 << 20  # bytes
_FIRST_SEGMENT = 4 << 20  # shorter: how fast it comes decides about further connections
_MOST_CONNECTIONS = 4  # per blob
_FAST = 100e6  # bytes per second, of one connection
_BATCH = 128 << 10  # bytes collected before they are written …
_DELAY = 0.005  # … unless the last write was so many seconds ago; what is not written yet, a SIGKILL loses
_MOST_PIECES = 512  # pwritev(2) takes 1024
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
        connections: anyio.Semaphore,
        retry: RetryPolicy,
        tracker: Tracker,
        available: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._reference = reference
        self._digest = digest
        self._part = part
        self._connections = connections
        self._retry = retry
        self._tracker = tracker
        self._available = available
        self._pending: deque[tuple[int, int]] = deque()
        self._sequential = False
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
        self._tracker.at("downloading", self._part.extents.total())
        await self._announce()
        while self._plan():
            self._helpers = 0
            with single_failure():
                async with anyio.create_task_group() as group:
                    await self._work(group)

    def _plan(self) -> bool:
        """Cut what is missing into segments."""
        size = self._part.size
        self._pending.clear()
        for start, end in self._part.extents.gaps(size):
            if self._sequential:
                self._pending.append((start, size))
                break
            length = _FIRST_SEGMENT if not self._pending and size > 2 * _SEGMENT else _SEGMENT
            while end - start > length + _SEGMENT // 2:  # no small remainder
                self._pending.append((start, start + length))
                start, length = start + length, _SEGMENT  # noqa: PLW2901 - the rest of the gap
            self._pending.append((start, end))
        return bool(self._pending)

    async def _work(self, group: anyio.abc.TaskGroup) -> None:
        """Fetch segments until none is left; let others join where that helps. Errors are the blob's."""
        backoff = Backoff(policy=self._retry)
        while self._pending:
            start, end = self._pending.popleft()
            before = time.monotonic()
            await self._fetch(start, end, backoff)
            rate = (end - start) / max(time.monotonic() - before, 1e-6)
            if (
                rate < _FAST
                and not self._sequential
                and self._helpers < _MOST_CONNECTIONS - 1
                and self._connections.value > 0
                and self._pending
            ):
                self._helpers += 1
                group.start_soon(self._help)

    async def _help(self) -> None:
        """Fetch segments as well. A refused further connection is no failure: what it leaves is planned again."""
        backoff = Backoff(policy=self._retry)
        while self._pending and not self._sequential:
            start, end = self._pending.popleft()
            try:
                await self._fetch(start, end, backoff)
            except RegistryError:
                return

    async def _fetch(self, start: int, end: int, backoff: Backoff) -> None:
        """Fetch one segment, going on where a connection broke off."""
        segment = self._part.segment(start)
        while segment.position < end:
            before = segment.position
            try:
                async with self._connections:
                    await self._receive(segment, end)
            except RegistryError as error:
                if segment.position - before >= _PROGRESS:
                    backoff.progressed()
                self._tracker.again(error.message)
                await backoff.again(error)
            if self._sequential:
                end = self._part.size

    async def _receive(self, segment: Segment, end: int) -> None:
        """One request, and what comes of it."""
        size = self._part.size
        position = segment.position
        asked = None if end == size or self._sequential else end
        async with self._client.open_blob(self._reference, self._digest, start=position, end=asked) as stream:
            if stream.total is not None and stream.total != size:
                raise DigestMismatch(
                    f"blob {self._digest}: {self._reference.registry} has {stream.total} bytes, the manifest says "
                    f"{size}"
                )
            if not stream.ranged and not self._sequential:
                self._sequential = True
                self._pending.clear()
                if asked is not None:
                    return  # once more, to the end
            await self._copy(stream, segment, size if self._sequential else end)
        if segment.position < (stream.end or end):
            short = httpx.RemoteProtocolError(f"ended after {segment.position - position} bytes")
            raise RegistryError(f"blob {self._digest}: {self._reference.registry}: {short}") from short

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
