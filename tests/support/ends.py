"""The other ends of what is pumped: threads that write and read, as another process would."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from crungo.io.fds import Fd

__all__ = ["BACKENDS", "Reader", "feed", "flags", "no_descriptor_left", "open_fds", "opened", "pair"]

BACKENDS = ["asyncio", "trio"]


def flags(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def opened(path: str, access: int) -> Fd:
    return Fd(os.open(path, access | os.O_CLOEXEC))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = open_fds()
    yield
    # A loop's own descriptors outlive the test with the asyncio runner of the plugin, so that growth is what counts.
    assert len(open_fds()) <= len(before) + 4


def feed(fd: int, chunks: list[bytes], pause: float = 0) -> threading.Thread:
    """Write ``chunks`` to ``fd`` from a thread, as another process would, then close it."""

    def run() -> None:
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
                if pause:
                    time.sleep(pause)
        except BrokenPipeError:
            pass
        finally:
            os.close(fd)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


class Reader(threading.Thread):
    """Reads ``fd`` to its end from a thread, ``size`` bytes at a time."""

    def __init__(self, fd: int, size: int = 65536, pause: float = 0) -> None:
        super().__init__()
        self.fd, self.size, self.pause = fd, size, pause
        self.data = b""
        self.start()

    def run(self) -> None:
        parts = []
        while True:
            try:
                part = os.read(self.fd, self.size)
            except OSError:  # a PTY's end
                break
            if not part:
                break
            parts.append(part)
            if self.pause:
                time.sleep(self.pause)
        os.close(self.fd)
        self.data = b"".join(parts)


def pair(kind: str) -> tuple[int, int]:
    """(read end, write end), blocking, of a pipe or socket."""
    if kind == "pipe":
        return os.pipe2(os.O_CLOEXEC)
    left, right = socket.socketpair()
    return left.detach(), right.detach()
