"""The progress of pulls, on stderr: a display where that is a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crungo.registry.progress import ProgressEvent

__all__ = ["pull_progress"]


@contextmanager
def pull_progress(fd: int) -> Iterator[Callable[[ProgressEvent], None]]:
    """Show the events given to what is yielded, until the block ends."""
    from crungo.registry.progress import ImageDone, ImageResolved, LayerDone

    def show(event: ProgressEvent) -> None:
        if isinstance(event, ImageResolved):
            _line(fd, f"Unable to find image '{event.reference.familiar}' locally")
        elif isinstance(event, LayerDone):
            _line(fd, f"{event.digest[7:19]}: {'Already exists' if event.cached else 'Pull complete'}")
        elif isinstance(event, ImageDone):
            _line(fd, f"Digest: {event.digest}")

    yield show


def _line(fd: int, text: str) -> None:
    os.write(fd, f"{text}\n".encode())
