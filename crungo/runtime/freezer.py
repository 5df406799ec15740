"""Freezing and thawing a container: v2's ``cgroup.freeze``, or v1's freezer controller (freezer-subsystem.rst).

Invariant: a container that was frozen can still be ended. On v1 a frozen process does not even die of SIGKILL, so
whoever kills a container thaws it, too. A further process is killed alone (``kill_frozen``): the rest stays frozen.
"""

from __future__ import annotations

import errno
import os
import select
import time

from crungo.errors import HostError
from crungo.runtime.cgroups import ROOT, path_of

__all__ = ["freeze", "kill_frozen", "thaw"]

SIGKILL = 9
PATIENCE = 2.0
"""Seconds until every process must stand still: one that waits inside the kernel may not."""


def freeze(identifier: str, root: str = ROOT) -> bool:
    """Freeze every process of the container, and wait until they stand still; False when the container is gone.

    For a worker thread.

    Raises:
        HostError: there is no freezer, or a process does not stand still.
    """
    if not os.path.exists(f"{root}/cgroup.controllers") and not os.path.isdir(f"{root}/freezer"):
        raise HostError("pause: the host has no freezer")
    old, new = _files(identifier, root)
    deadline = time.monotonic() + PATIENCE
    try:
        if _write(new, b"1"):
            done = _wait_v2(f"{os.path.dirname(new)}/cgroup.events", deadline)
        elif _write(old, b"FROZEN"):
            done = _wait_v1(old, deadline)
        else:
            return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise
    if not done:
        thaw(identifier, root)
        raise HostError("pause: a process of the container does not stand still")
    return True


def thaw(identifier: str, root: str = ROOT) -> bool:
    """Let a frozen container go on; False when it is gone. At once: nothing has to be waited for."""
    old, new = _files(identifier, root)
    return _write(old, b"THAWED") or _write(new, b"0")


def kill_frozen(identifier: str, group: str, root: str = ROOT) -> None:
    """Kill what is in a cgroup, of any tree, of processes of a frozen container, and leave the rest of that frozen.

    v2 needs no more than the signal, which is not given here. On v1 a part of what is frozen cannot be thawed, but a
    process that is moved to where nothing is frozen goes on: it has its death before it then, and runs no instruction.
    """
    try:
        with open(f"{root}/freezer{path_of(identifier)}/freezer.state", "rb") as file:
            if file.read().strip() == b"THAWED":
                return
        with open(f"{group}/cgroup.procs", "rb") as file:
            pids = [int(line) for line in file]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return
        raise
    for pid in pids:
        try:
            os.kill(pid, SIGKILL)
            _write(f"{root}/freezer/cgroup.procs", b"%d" % pid)
        except ProcessLookupError:
            pass


def _files(identifier: str, root: str) -> tuple[str, str]:
    name = path_of(identifier)
    return f"{root}/freezer{name}/freezer.state", f"{root}{name}/cgroup.freeze"


def _wait_v2(events: str, deadline: float) -> bool:
    with open(events, "rb", buffering=0) as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        while b"frozen 1" not in file.read():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
            file.seek(0)
    return True


def _wait_v1(state: str, deadline: float) -> bool:
    """v1 has no event for it; a process that was forked meanwhile may have to be told again."""
    while True:
        with open(state, "rb") as file:
            if file.read().strip() == b"FROZEN":
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
        _write(state, b"FROZEN")


def _write(path: str, content: bytes) -> bool:
    """Write to a control file; False when its cgroup is not there (any more)."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, content)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it went while the file was open
            raise
        return False
    finally:
        os.close(fd)
    return True
