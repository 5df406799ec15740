"""Locks between processes: flock(2) on the object that is being made, never on anything larger.

A lock belongs to an open file description. It ends with the last descriptor of it, hence with its process at the
latest, whatever ends the process. The objects locked here are temporary files and directories that are renamed into
place when they are complete; whoever waited for one finds, once it has the lock, that the name is gone or means another
object, and looks again. So no lock file is ever left over, and a lock file that nobody holds is garbage.

Invariant: a function that returns a descriptor has verified that the path still names the object that is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["exclusive", "is_current", "lock", "open_locked", "try_lock"]

_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def try_lock(fd: int) -> bool:
    """Take the lock of an open file or directory if it is free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def is_current(fd: int, path: str) -> bool:
    """Whether the path still names the open object."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def open_locked(path: str) -> int | None:
    """Open an existing file or directory with its lock taken; None when it is gone, or neither, or another holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            return None
        raise
    try:
        if try_lock(fd) and is_current(fd, path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


async def lock(path: str, *, directory: bool = False) -> int:
    """Create the file or directory where it is missing, wait for its lock, and return its descriptor, the caller's.

    The waiting is done by a thread of its own that ends with the wait: a cancelled caller leaves at once, and the lock,
    should it still come, is given up in the same moment.
    """
    while True:
        if directory:
            # Not exist_ok, which looks once more and fails when the directory has been removed in between.
            with suppress(FileExistsError):
                os.makedirs(path, mode=0o700)
        try:
            fd = os.open(path, _DIRECTORY if directory else _FILE, 0o600)
        except FileNotFoundError:
            if directory:  # removed since makedirs
                continue
            raise
        try:
            if not try_lock(fd):
                await _wait(fd)
            if is_current(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


async def _wait(fd: int) -> None:
    import threading  # only who has to wait pays for it

    # A daemon thread, not one of anyio's workers: the interpreter would wait for a worker at its exit, that is for as
    # long as another process holds the lock. The duplicate shares the lock with fd: when the caller has given up and
    # closed fd, closing the duplicate is what gives the lock back.
    waiter = os.dup(fd)
    try:
        done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except BaseException:
        os.close(waiter)
        raise
    failures: list[OSError] = []
    guard = threading.Lock()
    listening = True

    def work() -> None:
        try:
            fcntl.flock(waiter, fcntl.LOCK_EX)
        except OSError as error:
            failures.append(error)
        finally:
            os.close(waiter)
            with guard:
                if listening:
                    os.eventfd_write(done, 1)

    try:
        threading.Thread(target=work, name="crungo lock", daemon=True).start()
        from anyio import wait_readable

        await wait_readable(done)
    finally:
        with guard:
            listening = False
        os.close(done)
    if failures:
        raise failures[0]


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the lock of a file that stays (the store's own), for work of milliseconds; blocks the calling thread."""
    fd = os.open(path, _FILE, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
