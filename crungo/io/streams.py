"""anyio byte streams over raw descriptors: the ends of a container's pipes, and the master of its PTY.

Invariant: a stream owns its descriptor, which is non-blocking from then on and closed by ``aclose``. Cancelling
``receive`` loses no byte; cancelling ``send`` may have written a part.

Errors are anyio's: ``EndOfStream``, ``ClosedResourceError`` (closed on this side), ``BrokenResourceError`` (nobody
reads any more), ``BusyResourceError`` (two tasks at once in the same direction). Anything else is an OSError.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import anyio
from anyio import ResourceGuard
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream
from anyio.lowlevel import RunVar, checkpoint

from crungo.io.fds import Fd
from crungo.io.pty import eof_characters

__all__ = ["FdReceiveStream", "FdSendStream", "FdStream"]

_BROKEN: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENXIO, errno.ENOTCONN, errno.ESHUTDOWN})

# os.read allocates what it is asked for before it knows what comes; above this, the allocator maps fresh pages.
_READ: Final = 1 << 20

_turns: RunVar[anyio.Lock] = RunVar("crungo.io.streams: whose turn it is to close")


class _FdEnd:
    """The descriptor, and closing it."""

    def __init__(self, fd: Fd | int) -> None:
        self._fd = fd if isinstance(fd, Fd) else Fd(fd)
        self._fd.set_nonblocking()

    def fileno(self) -> int:
        """The number; OSError once closed."""
        return self._fd.fileno()

    async def aclose(self) -> None:
        """Close the descriptor; tasks waiting in ``receive`` or ``send`` get ClosedResourceError.

        One in each turn of the loop: closing lets the program at the other end run, and were a thousand closed in one
        turn, their programs would keep the loop from its processor for a third of a second.
        """
        try:
            turn = _turns.get()
        except LookupError:
            turn = anyio.Lock(fast_acquire=True)
            _turns.set(turn)
        try:
            async with turn:
                self.close()
                await checkpoint()
        finally:
            self.close()  # cancelled before it was its turn

    def close(self) -> None:
        """``aclose`` for those who cannot wait; it never does anyway. Outside a loop nobody can be waiting."""
        if self._fd.closed:
            return
        try:
            anyio.notify_closing(self._fd.fileno())
        except RuntimeError:  # there is no loop
            pass
        finally:
            self._fd.close()

    def _number(self) -> int:
        if self._fd.closed:
            raise anyio.ClosedResourceError
        return self._fd.fileno()


class _Reading(_FdEnd):
    def __init__(self, fd: Fd | int) -> None:
        super().__init__(fd)
        self._reading = ResourceGuard("reading from")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Between 1 and ``max_bytes`` bytes, as soon as there are any; EndOfStream at the end."""
        with self._reading:
            await checkpoint()  # before anything is taken: a cancelled receive has taken nothing
            while True:
                try:
                    return self._take(max_bytes)
                except anyio.WouldBlock:
                    await anyio.wait_readable(self._number())

    def receive_nowait(self, max_bytes: int = 65536) -> bytes:
        """What there is now, between 1 and ``max_bytes`` bytes; WouldBlock when there is nothing yet."""
        with self._reading:
            return self._take(max_bytes)

    def _take(self, max_bytes: int) -> bytes:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        try:
            data = self._read(self._number(), min(max_bytes, _READ))
        except BlockingIOError:
            raise anyio.WouldBlock from None
        except OSError as error:
            # EIO: the last slave of a PTY was closed (or the container was killed: the kernel hangs up).
            if error.errno in (errno.EIO, errno.ECONNRESET):
                raise anyio.EndOfStream from None
            raise
        if not data:
            raise anyio.EndOfStream
        return data

    def _read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)


class _Writing(_FdEnd):
    def __init__(self, fd: Fd | int) -> None:
        super().__init__(fd)
        self._writing = ResourceGuard("writing to")

    async def send(self, item: bytes) -> None:
        """Write all of ``item``; BrokenResourceError when nobody reads any more."""
        with self._writing:
            await checkpoint()
            self._number()
            left = memoryview(item)
            while left:
                fd = self._number()
                try:
                    left = left[os.write(fd, left) :]
                except BlockingIOError:
                    await anyio.wait_writable(fd)
                except OSError as error:
                    if error.errno in _BROKEN:
                        raise anyio.BrokenResourceError from error
                    raise


class FdReceiveStream(_Reading, ByteReceiveStream):
    """The read end of a pipe as a stream; takes the descriptor over."""


class FdSendStream(_Writing, ByteSendStream):
    """The write end of a pipe as a stream; takes the descriptor over."""


class FdStream(_Reading, _Writing, ByteStream):
    """A PTY master as a duplex stream; takes the descriptor over."""

    def _read(self, fd: int, size: int) -> bytes:
        # A master gives a page at a time at most; gather what is there. An end met on the way comes again.
        chunks = [os.read(fd, size)]
        size -= len(chunks[0])
        while chunks[-1] and size > 0:
            try:
                chunks.append(os.read(fd, size))
            except OSError:
                break
            size -= len(chunks[-1])
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def send_eof(self) -> None:
        """Type the terminal's end-of-file character, as Ctrl-D would.

        A PTY cannot be closed in one direction. A program that reads lines sees an end of file if the line is empty;
        one that switched that off (raw mode) is sent nothing.
        """
        await self.send(eof_characters(self._number(), at_line_start=True))
