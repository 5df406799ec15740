"""The outputs of a process as one sequence of pieces, in the order in which they come.

Invariant: nothing is read before somebody asks for it, so that a program whose output nobody takes waits, and what is
held in memory is one piece of each stream.
"""

from __future__ import annotations

import select
import time
from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crungo.io.streams import FdReceiveStream, FdStream

__all__ = ["Output", "OutputPieces", "StreamName"]

StreamName = Literal["stdout", "stderr", "terminal"]


class Output(NamedTuple):
    """A piece of output: where it was written to, the bytes, and when they were read, in seconds since the epoch."""

    stream: StreamName
    data: bytes
    time: float


class OutputPieces:
    """An asynchronous iterator over the pieces of several streams, until all have ended; the streams stay lent.

    Two pipes have no order between them but that of time: pieces that are both there already come in the order of the
    mapping. Not a generator: one that is left early would have to be closed by its user.
    """

    def __init__(self, streams: Mapping[StreamName, FdReceiveStream | FdStream], max_bytes: int) -> None:
        # One epoll for all of them: waiting takes no task for each stream.
        self._watch = select.epoll()
        self._streams = dict(streams)
        self._max_bytes = max_bytes
        self._ready: deque[Output] = deque()
        for stream in self._streams.values():
            self._watch.register(stream.fileno(), select.EPOLLIN)

    def __aiter__(self) -> OutputPieces:
        return self

    async def __anext__(self) -> Output:
        await checkpoint()
        while not self._ready:
            if not self._streams:
                self._watch.close()
                raise StopAsyncIteration
            if not self._watch.poll(0):
                await anyio.wait_readable(self._watch)
            self._take()
        return self._ready.popleft()

    def _take(self) -> None:
        for name, stream in list(self._streams.items()):
            try:
                data = stream.receive_nowait(self._max_bytes)
            except anyio.WouldBlock:
                continue
            except anyio.EndOfStream:
                self._watch.unregister(stream.fileno())
                del self._streams[name]
            else:
                self._ready.append(Output(name, data, time.time()))
