"""System calls that Python's os module lacks, typed; each raises OSError with errno.

Constants are those of the kernel's headers (openat2.h, prctl.h); see openat2(2), prctl(2).
"""

from __future__ import annotations

import os

from crungo.runtime._native import ffi, lib

__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_SYMLINKS",
    "ignore_signal",
    "openat2",
    "reset_signals",
    "send_signal",
    "set_child_subreaper",
    "set_name",
    "signal_fd",
]

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10


def openat2(directory: int, path: str | bytes, flags: int, *, resolve: int = RESOLVE_IN_ROOT, mode: int = 0) -> int:
    """Open ``path`` below the directory descriptor, which is its root: no ``..``, link or magic link leaves it."""
    return _check(
        lib.crungo_openat2(directory, os.fsencode(path), flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS),
        path,
    )


def set_child_subreaper() -> None:
    """Become the parent of orphaned descendants."""
    _check(lib.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def set_name(name: str) -> None:
    """Name the calling thread, as ``ps`` shows it: 15 bytes at most."""
    buffer = ffi.new("char[]", name.encode()[:15])
    _check(lib.prctl(PR_SET_NAME, int(ffi.cast("uintptr_t", buffer)), 0, 0, 0))


def send_signal(pidfd: int, signum: int) -> None:
    """Send a signal to the process of a pidfd."""
    _check(lib.crungo_pidfd_send_signal(pidfd, signum))


def ignore_signal(signum: int) -> None:
    """Ignore a signal; Python's own signal module takes a while to import."""
    _check(lib.crungo_ignore_signal(signum))


def signal_fd(signum: int) -> int:
    """Block a signal; returns a non-blocking descriptor that is readable while one is pending."""
    return _check(lib.crungo_signal_fd(signum))


def reset_signals() -> None:
    """Give all signals their default actions back, and block none."""
    lib.crungo_reset_signals()


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        number = ffi.errno
        raise OSError(number, os.strerror(number), path)
    return result
