"""What containers have left whose owners were killed together with their spawner.

A directory below ``containers`` whose lock is free has no living owner (``crungo.runtime.state``). Invariant: whoever
is still at work in a directory keeps its lock, and nothing here takes it away.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crungo.paths import Roots

__all__ = ["measure", "remove"]


def measure(roots: Roots) -> tuple[int, int, int]:
    """How many directories belong to somebody, how many to nobody, and the bytes on disk of these."""
    from crungo.image.trees import tree_size
    from crungo.runtime.state import Places

    places = Places(roots.root, roots.run)
    if not os.path.isdir(places.names):  # made after the other one
        return 0, 0, 0
    owned, left = places.directories()
    return len(owned), len(left), sum(map(tree_size, left))


def remove(roots: Roots) -> tuple[int, int]:
    """Remove them; how many there were, and the bytes that this freed.

    A spawner does it: before it serves, it removes what it finds, and it ends when that is done and nobody asks.
    """
    from crungo.runtime.requests import SpawnerProcess
    from crungo.runtime.state import Places

    places = Places(roots.root, roots.run)
    if os.path.isdir(places.state):  # made last
        places.sweep_work()
    _, count, size = measure(roots)
    if not count:
        return 0, 0
    spawner = SpawnerProcess.start(roots)
    spawner.end_requests()
    try:
        poll = select.poll()
        poll.register(spawner.pidfd, select.POLLIN)
        poll.poll()
    finally:
        spawner.reap()
    _, count_left, size_left = measure(roots)
    return count - count_left, max(0, size - size_left)
