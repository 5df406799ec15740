"""A blob, or a part of one, as it comes from a registry.

Invariant: ``chunks`` yields exactly the bytes from ``start`` up to ``end`` that were asked for, whatever the server
made of the range, or raises; nothing is said about their digest, which the receiver checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpcore

from crungo.errors import RegistryError
from crungo.registry.failures import unreachable
from crungo.registry.headers import parse_content_range

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.registry.answer import Answer

__all__ = ["BlobStream", "open_stream", "range_header"]


class BlobStream:
    """The bytes ``start`` up to, not including, ``end`` of a blob of ``total`` bytes; None for what the server left
    open.

    ``ranged``: the server served the range that was asked for. False with a range asked for means that it ignores
    ranges: what precedes ``start`` is then received too and thrown away, and parallel ranges are of no use.
    """

    def __init__(
        self, answer: Answer, what: str, *, start: int, end: int | None, total: int | None, skip: int, ranged: bool
    ) -> None:
        self.start = start
        self.end = end
        self.total = total
        self.ranged = ranged
        self._answer = answer
        self._what = what
        self._skip = skip
        self._position = start

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces of up to 256 KiB, in order. To be iterated once, by one task.

        Raises:
            RegistryError: the connection broke, stalled or ended early; ``retry.is_transient`` tells whether to go on
                from where it ended.
        """
        return self

    def __aiter__(self) -> BlobStream:
        return self

    async def __anext__(self) -> bytes:
        while self.end is None or self._position < self.end:
            chunk = await self._answer.next()
            if not chunk:
                self._ended()
                break
            if self._skip:
                skipped = min(self._skip, len(chunk))
                self._skip -= skipped
                chunk = chunk[skipped:]
            if self.end is not None and len(chunk) > self.end - self._position:
                chunk = chunk[: self.end - self._position]
            if chunk:
                self._position += len(chunk)
                return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Release the connection."""
        if self._position == self.end:
            await self._answer.finish()
        await self._answer.aclose()

    def _ended(self) -> None:
        """The body is at its end: is that where it should be?"""
        if self._skip or (self.end is not None and self._position < self.end):
            short = httpcore.RemoteProtocolError(f"it ended after {self._position - self.start} bytes")
            raise unreachable(self._what, self._answer.host, short) from short


def range_header(start: int, end: int | None) -> dict[str, str]:
    """The ``Range`` header for bytes ``start`` up to, not including, ``end``; none for the whole."""
    if start == 0 and end is None:
        return {}
    return {"Range": f"bytes={start}-{'' if end is None else end - 1}"}


def open_stream(answer: Answer, what: str, *, start: int, end: int | None) -> BlobStream:
    """Read the head of the answer (200, 206 or 416) to a request with ``range_header(start, end)``.

    Raises:
        RegistryError: it contradicts what was asked.
    """
    if answer.status == 416:
        return _beyond(answer, what, start)
    if answer.status == 200:
        total, asked = answer.length, bool(range_header(start, end))
        if total is not None:
            if start > total:
                raise RegistryError(f"{what}: {answer.host}: has {total} bytes, not {start}", status=416)
            end = total if end is None else min(end, total)
        return BlobStream(answer, what, start=start, end=end, total=total, skip=start, ranged=not asked)
    served = parse_content_range(answer.headers.get("content-range"))
    if served is None or served.start != start or served.end is None or (end is not None and served.end > end):
        raise RegistryError(f"{what}: {answer.host}: answered another range than was asked for", status=206)
    return BlobStream(answer, what, start=start, end=served.end, total=served.total, skip=0, ranged=True)


def _beyond(answer: Answer, what: str, start: int) -> BlobStream:
    """Nothing is there at ``start``: right if the blob ends there, as with a resume of what was complete."""
    said = parse_content_range(answer.headers.get("content-range"))
    if said is None or said.total != start:
        size = "" if said is None or said.total is None else f", it has {said.total}"
        raise RegistryError(f"{what}: {answer.host}: has no byte {start}{size}", status=416)
    return BlobStream(answer, what, start=start, end=start, total=start, skip=0, ranged=True)
