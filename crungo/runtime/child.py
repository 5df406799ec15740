"""What the spawner's children do that start nothing; each function runs in a fresh fork, which then ends.

Those that start a container or a process in one are in C (``native/start.h``).
"""

from __future__ import annotations

import fcntl
import os

from crungo.errors import CrungoError
from crungo.runtime import cgroups, freezer, libcrun, syscalls, wire
from crungo.runtime.reports import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from crungo.runtime.state import Claim

__all__ = [
    "arrange",
    "end_execution",
    "remove",
    "update",
]


def arrange(wanted: Sequence[int]) -> None:
    """Move descriptors to 0, 1, 2, … in the order given, and close all others."""
    # The others first: the limit on descriptors is the caller's by now, and the spawner may hold more than that.
    free = 0
    for fd in sorted(wanted):
        if free < fd:
            syscalls.close_range(free, fd - 1)
        free = fd + 1
    syscalls.close_range(free)
    # Then out of the way: a wanted descriptor may sit where another has to go.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(wanted)) for fd in wanted]
    for target, fd in enumerate(moved):
        os.dup2(fd, target, inheritable=False)
    syscalls.close_range(len(wanted))


def update(claim: Claim, resources: bytes, reply: str, channel: _socket.socket) -> None:
    """Change the limits of a running container; replies on its channel, by an event named ``reply``."""
    error = None
    try:
        libcrun.update(identifier=claim.identifier, state_root=claim.places.state, resources=resources)
    except CrungoError as problem:
        error = failure(problem)
    wire.send(channel, {"event": reply, "error": error})


def end_execution(identifier: str, cgroup: str) -> None:
    """Kill and remove what a further process has started, and nothing else of the container."""
    cgroups.kill(identifier, cgroup)
    cgroups.remove(identifier, cgroup)


def remove(claim: Claim) -> None:
    """Remove what is left of a container: processes, cgroup, state, files.

    Not by libcrun's delete, which needs the records that a crash may have kept from being written.
    """
    cgroups.kill(claim.identifier)
    freezer.thaw(claim.identifier)  # a frozen process would not even die
    try:
        cgroups.remove(claim.identifier)
    finally:
        claim.remove()
