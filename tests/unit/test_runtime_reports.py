"""Reports as a process of a container with CAP_SYS_PTRACE could forge them: they end their task, and nothing else."""

from __future__ import annotations

import _socket
import os
from collections.abc import Iterator
from typing import Any

import pytest

from crungo.runtime import wire
from crungo.runtime.tasks import Task


class Spawner:
    """What a task asks of it, with nothing behind."""

    def __init__(self) -> None:
        self.tasks: set[Task] = set()

    def watch(self, fd: int, handler: object) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def close(self, fd: int) -> None:
        os.close(fd)


@pytest.fixture
def ends() -> Iterator[list[_socket.socket]]:
    sockets = [*wire.pair(), *wire.pair()]
    yield sockets
    for sock in sockets:
        sock.close()


def packet(kind: int, number: int, rest: bytes = b"") -> bytes:
    return kind.to_bytes(4, "little", signed=True) + number.to_bytes(4, "little") + rest


def events(channel: _socket.socket) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        message, fds = wire.recv(channel)
        for fd in fds:
            os.close(fd)
        if message is None:
            return found
        found.append(message)


@pytest.mark.parametrize(
    "packets",
    [
        [(b"\1", 0)],
        [(packet(0, 1), 0)],
        [(packet(2, 0), 0)],
        [(packet(2, 0, b"no nulls"), 0)],
        [(packet(99, 0, b"a\0b\0c\0"), 0)],
        [(packet(-1, 0, b"a\0b\0c\0"), 2)],
        [(packet(0, 1), 2), (packet(0, 2), 2)],
        [(packet(0, 1), 1), (packet(0, 2), 0)],
    ],
)
def test_forged_reports(ends: list[_socket.socket], packets: list[tuple[bytes, int]]) -> None:
    channel, engines, ours, theirs = ends
    before = len(os.listdir("/proc/self/fd"))
    task = Task(Spawner(), channel)  # type: ignore[arg-type]
    task.report = ours
    task._kill = lambda: None  # type: ignore[method-assign]
    other = os.pidfd_open(os.getpid())  # which is no child
    try:
        for data, n in packets:
            descriptors = other.to_bytes(4, "little") * n
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)] if n else []
            theirs.sendmsg([data], ancillary)
    finally:
        os.close(other)
    assert task.read_report()
    if task in task.spawner.tasks:
        task.doom()
    told = [event["event"] for event in events(engines)]
    assert told.count("error") == 1
    assert told[-1] == "gone"
    assert len(os.listdir("/proc/self/fd")) <= before
