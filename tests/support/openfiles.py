"""A process that has as many files open as it may."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

__all__ = ["descriptors_left"]


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Within the block, this process can open that many more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in range(limits[0]) if not os.path.exists(f"/proc/self/fd/{number}"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, count, None)), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
