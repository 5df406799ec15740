"""Descriptors: an owner for each of ours, and what can be known about one of somebody else's.

Invariant: crungo never changes a descriptor that it was only lent. ``O_NONBLOCK`` belongs to the open file
description, which a terminal shares with the shell and with every sibling in a pipeline; a tool that sets it
and dies makes ``cat`` fail with EAGAIN. So the flag is set on our own ends only, and lent descriptors are
opened anew (see ``reopen``) or used in ways that cannot block (see ``endpoints``).

This module imports nothing but the standard library, so that a small helper process can use it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import select
import stat
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Final, Self

__all__ = [
    "Fd",
    "Kind",
    "ensure_standard_fds",
    "is_hung_up",
    "is_pty_master",
    "kind_of",
    "pipe",
    "pipe_size",
    "reopen",
    "widen",
]

# Documentation/admin-guide/devices.txt: character device 5:2 is /dev/ptmx, also as each devpts instance's own.
_PTMX: Final = os.makedev(5, 2)


class Fd:
    """The owner of one descriptor: closed exactly once, -1 afterwards.

    A descriptor that is collected while open is closed, with a ResourceWarning: it had an owner who forgot.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = -1  # __del__ must find it, whatever happens next
        if fd < 0:
            raise ValueError(f"not a descriptor: {fd}")
        self._fd = fd

    def fileno(self) -> int:
        """The number; OSError (EBADF) once closed or detached."""
        if self._fd < 0:
            raise OSError(errno.EBADF, "the descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """Close it; a second call does nothing.

        The number is given up before close(2), which releases it even when it reports an error (close(2), EINTR and
        EIO): a retry could close what another thread has just opened. Its errors are those of writes already
        reported or lost, so they are not raised.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def detach(self) -> int:
        """Give the number away; the caller owns it now."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def dup(self) -> Fd:
        """Another descriptor of the same open file description, close-on-exec."""
        return Fd(fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))

    def set_nonblocking(self) -> Self:
        """Set ``O_NONBLOCK``. Only for descriptions that nobody else uses."""
        os.set_blocking(self.fileno(), False)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            number = self._fd
            self.close()  # first: where warnings are errors, the next line raises
            warnings.warn(f"descriptor {number} was never closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"Fd({self._fd})"


class Kind(enum.Enum):
    """What a descriptor leads to, as far as reading and writing differ."""

    CLOSED = "closed"  # there is no such descriptor
    PIPE = "pipe"  # a pipe or FIFO
    SOCKET = "socket"
    TERMINAL = "terminal"  # any tty, PTY masters among them
    READY = "ready"  # never waits as poll(2) means it: regular files, directories, /dev/null, block devices
    OTHER = "other"  # pollable, and nothing more is known: eventfds, most character devices


def kind_of(fd: int) -> Kind:
    """What ``fd`` leads to."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return Kind.CLOSED
    if stat.S_ISFIFO(mode):
        return Kind.PIPE
    if stat.S_ISSOCK(mode):
        return Kind.SOCKET
    # isatty(3) denies a terminal that was hung up: every ioctl gives EIO.
    if stat.S_ISCHR(mode) and (os.isatty(fd) or is_hung_up(fd)):
        return Kind.TERMINAL
    return Kind.OTHER if _epoll_takes(fd) else Kind.READY


def _epoll_takes(fd: int) -> bool:
    """Whether epoll(7) can watch it: EPERM says that its driver has no notion of readiness."""
    with contextlib.closing(select.epoll(1)) as probe:
        try:
            probe.register(fd, select.EPOLLIN)
        except OSError:
            return False
    return True


def is_pty_master(fd: int) -> bool:
    """Whether ``fd`` is the master side of a pseudo-terminal."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _PTMX


def is_hung_up(fd: int) -> bool:
    """Whether ``fd`` is a terminal whose other side is gone: a closed emulator, a lost connection, a dead container."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always reported
    return stat.S_ISCHR(mode) and any(events & select.POLLHUP for _, events in poll.poll(0))


def reopen(fd: int, kind: Kind, access: int) -> Fd | None:
    """A new, non-blocking open file description of the pipe or terminal behind ``fd``; None where there is none.

    ``access`` is ``os.O_RDONLY`` or ``os.O_WRONLY``. The link in /proc leads to the object itself, also when its
    name is in another mount namespace or gone. It fails for sockets (ENXIO), for a terminal of another user after su
    (EACCES), for a FIFO without a reader (ENXIO). A PTY master must not be tried: opening its inode makes a new
    pair. Nor must other devices, whose open may have an effect.
    """
    if kind not in (Kind.PIPE, Kind.TERMINAL) or is_pty_master(fd):
        return None
    try:
        new = Fd(os.open(f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return None
    # Where /proc is not ours (a chroot with a stale or forged one), the path may lead anywhere.
    if not os.path.sameopenfile(fd, new.fileno()):
        new.close()
        return None
    return new


def pipe() -> tuple[Fd, Fd]:
    """A new pipe: its read end and its write end, both blocking and close-on-exec."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    return Fd(reader), Fd(writer)


def pipe_size(fd: int) -> int:
    """The capacity of a pipe in bytes; 0 for anything else."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return 0


def widen(fd: int, size: int) -> int:
    """Let the pipe behind ``fd`` hold at least ``size`` bytes where allowed, never fewer than now; its capacity, or 0.

    Refused (EPERM) above /proc/sys/fs/pipe-max-size, and for a user whose pipes already take more than
    pipe-user-pages-soft; both are fine, the pipe works as it is. pipe(7).
    """
    capacity = pipe_size(fd)
    size = min(size, 1 << 30)  # the kernel takes 32 bits of it: 1 << 40 would shrink the pipe
    if not 0 < capacity < size:
        return capacity
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return capacity


def ensure_standard_fds() -> None:
    """Open /dev/null as each of descriptors 0 to 2 that is closed. To be called before anything else is opened.

    Otherwise the next pipe or socket gets such a number, and whoever prints to stderr writes into it.
    """
    for fd in range(3):
        if kind_of(fd) is Kind.CLOSED:
            # The lowest free number is given: all below are open by now.
            opened = os.open("/dev/null", os.O_RDONLY if fd == 0 else os.O_WRONLY)
            os.set_inheritable(opened, True)  # what is run from here expects the three to be there
