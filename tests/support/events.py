"""Waiting for the kernel's own news: processes that end, files that go, mounts that change. Nothing here polls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Entries", "Watch", "wait_for_exit", "wait_until"]

_libc = ctypes.CDLL(None, use_errno=True)

IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400
_ENTRIES = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF
IN_Q_OVERFLOW = 0x4000
IN_CLOEXEC, IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK


class Watch:
    """Wakes ``wait`` as soon as a process ends, a path is removed or the mount table changes.

    Whatever happened before the watch was made is not reported: look again after making it, then wait.
    """

    def __init__(self, *, processes: Iterable[int] = (), paths: Iterable[str] = (), mounts: bool = False) -> None:
        self._poll = select.poll()
        self._descriptors: list[int] = []
        try:
            for pid in processes:
                self._watch_process(pid)
            if mounts:
                self._register(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC), select.POLLPRI)
            folders = {os.path.dirname(path) for path in paths}
            if folders:
                self._watch_folders(folders)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, seconds: float) -> bool:
        """Whether something happened within this time."""
        return bool(self._poll.poll(max(0, round(seconds * 1000))))

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _register(self, descriptor: int, events: int) -> None:
        self._descriptors.append(descriptor)
        self._poll.register(descriptor, events)

    def _watch_process(self, pid: int) -> None:
        try:
            self._register(os.pidfd_open(pid), select.POLLIN)
        except ProcessLookupError:
            return  # it has ended already, as the caller's next look will show

    def _watch_folders(self, folders: Iterable[str]) -> None:
        descriptor = _libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._register(descriptor, select.POLLIN)
        for folder in folders:
            # A folder that is gone has taken the path with it.
            _libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF)


class Entries:
    """The names of all entries that some folders ever get while they are watched, however short they last."""

    def __init__(self) -> None:
        # Not when it is needed first: that may be in the midst of a test which leaves no descriptor behind.
        self._descriptor: int = _libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        self._seen: set[str] = set()

    def watch(self, folder: Path) -> None:
        if _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), IN_CREATE) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))

    def seen(self) -> set[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                events = os.read(self._descriptor, 1 << 16)
                while events:  # inotify(7): watch, mask, cookie, length of the name
                    mask, length = struct.unpack_from("=4xI4xI", events)
                    assert not mask & IN_Q_OVERFLOW
                    self._seen.add(os.fsdecode(events[16 : 16 + length].rstrip(b"\0")))
                    events = events[16 + length :]
        return self._seen


def wait_until(
    condition: Callable[[], bool], *, folders: Iterable[str | os.PathLike[str]], seconds: float = 10
) -> None:
    """Wait until a condition that depends on what these folders list is true; AssertionError when it never is.

    Folders that do not exist yet are waited for in the nearest one above that does.
    """
    places = [os.path.abspath(folder) for folder in folders]
    deadline = time.monotonic() + seconds
    while not condition():
        descriptor = _watch_entries(places)
        try:
            if condition():  # it became true before the watches were there
                return
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
                raise AssertionError(f"did not happen within {seconds} s in {', '.join(places)}")
        finally:
            os.close(descriptor)


def _watch_entries(folders: Iterable[str]) -> int:
    """A descriptor that is readable as soon as one of the folders, or the nearest one above, gets or loses an entry."""
    descriptor: int = _libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    for folder in folders:
        place = folder
        while _libc.inotify_add_watch(descriptor, os.fsencode(place), _ENTRIES) < 0 and place != "/":
            place = os.path.dirname(place)
    return descriptor


def wait_for_exit(pid: int, seconds: float) -> bool:
    """Whether this process, anybody's child, ends within this time."""
    deadline = time.monotonic() + seconds
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0, round((deadline - time.monotonic()) * 1000))))
    finally:
        os.close(descriptor)
