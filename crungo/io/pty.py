"""The master of a pseudo-terminal: receiving it, its window size, its end-of-file character.

Invariant: a received descriptor is a PTY master and close-on-exec, or it is closed and an error is raised; the
sender is not trusted to send what was agreed on.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import termios
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from crungo.errors import ContainerError, UsageError
from crungo.io.fds import Fd, is_pty_master

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Size", "eof_characters", "get_size", "receive_master", "recv_fds", "set_size"]

_LIMIT: Final = 0xFFFF  # struct winsize holds unsigned shorts
_LFLAG: Final = 3  # places in what tcgetattr returns
_CC: Final = 6


class Size(NamedTuple):
    """The size of a terminal in characters."""

    columns: int
    rows: int


def get_size(fd: int) -> Size:
    """The window size of a terminal, from either side; 0 by 0 where nobody has set it. termios.error if none."""
    rows, columns = termios.tcgetwinsize(fd)
    return Size(columns, rows)


def set_size(fd: int, size: tuple[int, int]) -> None:
    """Set the window size, (columns, rows); the kernel sends SIGWINCH to the foreground job if it changed.

    UsageError outside 0 to 65535. A terminal that is gone meanwhile is no error: nobody looks at it.
    """
    columns, rows = size
    if not (0 <= columns <= _LIMIT and 0 <= rows <= _LIMIT):
        raise UsageError(f"terminal size {columns}x{rows}: columns and rows must be between 0 and {_LIMIT}")
    with contextlib.suppress(termios.error):
        termios.tcsetwinsize(fd, (rows, columns))


def eof_characters(master: int, *, at_line_start: bool) -> bytes:
    """What to type so that a program reading this terminal sees the end of its input; empty in raw mode.

    In the middle of a line, the first character only hands over what was typed so far (termios(3), VEOF), so that
    it takes two. The master shows the settings of the slave.
    """
    try:
        attributes = termios.tcgetattr(master)
    except termios.error:
        return b""
    character: bytes = attributes[_CC][termios.VEOF]
    if not attributes[_LFLAG] & termios.ICANON or character == b"\0":  # 0 is _POSIX_VDISABLE: switched off
        return b""
    return character if at_line_start else character * 2


async def recv_fds(sock: socket.socket, max_fds: int, max_bytes: int = 4096) -> tuple[bytes, list[Fd]]:
    """Receive one message with up to ``max_fds`` descriptors (unix(7), SCM_RIGHTS); all are close-on-exec.

    ``sock`` may be blocking or not. More descriptors than that are closed and a ContainerError is raised. An empty
    answer means that the peer has closed.
    """
    item = array.array("i").itemsize
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    while True:
        try:
            data, ancillary, message_flags, _ = sock.recvmsg(max_bytes, socket.CMSG_SPACE(max_fds * item), flags)
            break
        except BlockingIOError:
            await anyio.wait_readable(sock)
    fds: list[Fd] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % item])
            fds.extend(Fd(number) for number in numbers)
    # CMSG_SPACE rounds up, so that one more may fit than was asked for; the flag says that even more were sent.
    if len(fds) > max_fds or message_flags & socket.MSG_CTRUNC:
        _close(fds)
        raise ContainerError(f"receiving descriptors: the sender sent more than {max_fds}")
    return data, fds


async def receive_master(sock: socket.socket) -> Fd:
    """Receive the PTY master that a runtime sends over its console socket, non-blocking from now on.

    ContainerError if the peer closes without sending one, or sends something else. The runtime has given its own copy
    up, so that the description is ours alone.
    """
    _, fds = await recv_fds(sock, 1)
    if len(fds) != 1:
        raise ContainerError("receiving the terminal: the runtime has closed its socket without sending it")
    master = fds[0]
    if not (os.isatty(master.fileno()) and is_pty_master(master.fileno())):
        master.close()
        raise ContainerError("receiving the terminal: what the runtime sent is no pseudo-terminal")
    return master.set_nonblocking()


def _close(fds: Sequence[Fd]) -> None:
    for fd in fds:
        fd.close()
