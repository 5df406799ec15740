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

__all__ = ["living", "measure", "remove"]


def measure(roots: Roots) -> tuple[int, int]:
    """How many such directories there are, and their bytes on disk."""
    from crungo.image.trees import tree_size
    from crungo.runtime.state import Places

    places = Places(roots.root, roots.run)
    count = size = 0
    for claim in places.leftovers() if os.path.isdir(places.names) else ():  # made after the other one
        try:
            count, size = count + 1, size + tree_size(claim.directory)
        finally:
            claim.release()
    return count, size


def living(roots: Roots) -> int:
    """How many directories there are that belong to somebody."""
    try:
        names = os.listdir(f"{roots.root}/containers")
    except FileNotFoundError:
        return 0
    return len(names) - measure(roots)[0]


def remove(roots: Roots) -> tuple[int, int]:
    """Remove them; how many there were, and the bytes that this freed.

    A spawner does it: before it serves, it removes what it finds, and it ends when that is done and nobody asks.
    """
    from crungo.runtime.requests import SpawnerProcess
    from crungo.runtime.state import Places

    places = Places(roots.root, roots.run)
    if os.path.isdir(places.state):  # made last
        places.sweep_work()
    before = measure(roots)
    if not before[0]:
        return before
    spawner = SpawnerProcess.start(roots)
    spawner.end_requests()
    try:
        poll = select.poll()
        poll.register(spawner.pidfd, select.POLLIN)
        poll.poll()
    finally:
        spawner.reap()
    after = measure(roots)
    return before[0] - after[0], max(0, before[1] - after[1])
