"""What the spawner's children do that start nothing; each function runs in a fresh fork, which then ends.

Those that start a container or a process in one are in C (``native/start.h``).
"""

from __future__ import annotations

from crungo.errors import CrungoError
from crungo.runtime import cgroups, freezer, libcrun, wire
from crungo.runtime.reports import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from crungo.runtime.state import Claim

__all__ = [
    "end_execution",
    "remove",
    "update",
]


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
