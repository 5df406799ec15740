"""Ends that bytes are read from and written to without ever blocking, whoever owns the descriptor.

Invariant: ``read_into`` and ``write`` never wait, and the flags of the descriptor that was given are what they were.
How, depends on what is behind it:

* non-blocking already: plain read(2) and write(2);
* a socket: ``MSG_DONTWAIT`` on a duplicate;
* a pipe or terminal: opened anew, non-blocking (``fds.reopen``);
* a regular file, /dev/null: always ready, as poll(2) sees it (a slow disk can still make a read take time);
* what is left (a blocking terminal of another user): poll(2) first, then little enough to fit.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Final

import anyio
from anyio.lowlevel import checkpoint

from crungo.io.fds import Fd, Kind, kind_of, reopen

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["GONE", "Sink", "Source", "write_all"]

# The other side is not there any more: a pipe or socket without reader; a terminal that was hung up (EIO, ENXIO);
# a descriptor that was closed before we started (EBADF).
GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.EBADF, errno.ENXIO})

# A pipe that poll(2) calls writable has room for PIPE_BUF bytes (pipe(7)). A terminal promises one byte; in
# practice its driver has several hundred free then, and what blocks is brief: until the emulator reads.
_POLLED_WRITE: Final = {Kind.PIPE: select.PIPE_BUF}
_POLLED_WRITE_OTHER: Final = 256


class _End:
    """What both directions share: the classification, and the means that it asks for."""

    __slots__ = ("_owned", "_polled", "_socket", "fd", "kind", "plain")

    _access: int
    _event: int

    def __init__(self, fd: int) -> None:
        self.kind = kind_of(fd)
        self.fd = fd  # what is read, written and waited for
        self._owned: Fd | None = None
        self._socket: socket.socket | None = None
        self._polled = False
        self.plain = self.kind is not Kind.CLOSED  # read(2) and write(2) are all it takes
        if self.kind in (Kind.CLOSED, Kind.READY) or not os.get_blocking(fd):
            return
        if self.kind is Kind.SOCKET:
            self._socket = _borrow_socket(fd)
            self.plain = False
            self.fd = self._socket.fileno()
            return
        self._owned = reopen(fd, self.kind, self._access)
        if self._owned is not None:
            self.fd = self._owned.fileno()
        else:
            self._polled = True
            self.plain = False

    def close(self) -> None:
        """Give back what was opened for this end; the given descriptor stays as it is."""
        if self._socket is not None:
            self._socket.close()
        if self._owned is not None:
            self._owned.close()

    def _check_ready(self) -> None:
        poll = select.poll()
        poll.register(self.fd, self._event)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, "not ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Source(_End):
    """An end to read from."""

    __slots__ = ()

    _access = os.O_RDONLY
    _event = select.POLLIN

    def read_into(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes; 0 is the end. BlockingIOError when there is nothing yet.

        A terminal that is gone (EIO: the last slave of a PTY was closed, or the terminal was hung up), a connection
        that was reset and a descriptor that was closed before have ended too.
        """
        try:
            if self.plain:
                return os.readv(self.fd, (buffer,))
            if self.kind is Kind.CLOSED:
                return 0
            if self._socket is not None:
                return self._socket.recv_into(buffer, len(buffer), socket.MSG_DONTWAIT)
            self._check_ready()
            return os.readv(self.fd, (buffer,))
        except OSError as error:
            if self.is_ended_by(error):
                return 0
            raise

    def is_ended_by(self, error: OSError) -> bool:
        """Whether an error of read(2) means no more than that the source has ended."""
        if error.errno in (errno.EIO, errno.ENXIO):
            return self.kind is Kind.TERMINAL
        return error.errno == errno.ECONNRESET

    async def wait(self) -> None:
        """Wait until reading is worth a try. ClosedResourceError, BusyResourceError as anyio raises them."""
        if self.kind in (Kind.CLOSED, Kind.READY):
            await checkpoint()
        else:
            await anyio.wait_readable(self.fd)


class Sink(_End):
    """An end to write to."""

    __slots__ = ()

    _access = os.O_WRONLY
    _event = select.POLLOUT

    def write(self, data: memoryview) -> int:
        """Write what fits now; the number of bytes, 0 when nothing fits. OSError with an errno of ``GONE`` when nobody
        will ever read it (a vanished terminal's EIO is reported as EPIPE)."""
        try:
            if self.plain:
                return os.write(self.fd, data)
            if self.kind is Kind.CLOSED:
                raise BrokenPipeError(errno.EPIPE, "the descriptor is closed")
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._check_ready()
            return os.write(self.fd, data[: _POLLED_WRITE.get(self.kind, _POLLED_WRITE_OTHER)])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EIO and self.is_gone_by(error):
                raise BrokenPipeError(errno.EPIPE, "the terminal is gone") from error
            raise

    def is_gone_by(self, error: OSError) -> bool:
        """Whether an error of write(2) means that nobody will ever read it."""
        return error.errno in GONE or (error.errno == errno.EIO and self.kind is Kind.TERMINAL)

    async def wait(self) -> None:
        """Wait until writing is worth a try. ClosedResourceError, BusyResourceError as anyio raises them."""
        if self.kind in (Kind.CLOSED, Kind.READY):
            await checkpoint()
        else:
            await anyio.wait_writable(self.fd)


async def write_all(sink: Sink, data: memoryview) -> None:
    """Write all of ``data``, waiting where needed. OSError as ``Sink.write`` raises it."""
    while data:
        count = sink.write(data)
        if count == 0:
            await sink.wait()
        data = data[count:]


def _borrow_socket(fd: int) -> socket.socket:
    """A socket object over a duplicate of ``fd``, in blocking mode as the given one is."""
    duplicate = os.dup(fd)
    try:
        borrowed = socket.socket(fileno=duplicate)
    except BaseException:
        os.close(duplicate)
        raise
    if borrowed.gettimeout() is not None:
        # socket.setdefaulttimeout() was called in this process: the constructor has just set O_NONBLOCK.
        borrowed.settimeout(None)
    return borrowed
