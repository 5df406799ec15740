"""SIGWINCH as a stream of window sizes, on the same loop as everything else.

Invariant: the last size that the iterator gave is the terminal's size, as soon as the reader has caught up; a burst
of signals becomes one size, and one that changed nothing becomes none.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crungo.io.signals import receive_signals
from crungo.io.terminal import terminal_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from crungo.io.pty import Size

__all__ = ["window_sizes"]


@contextmanager
def window_sizes(fd: int) -> Iterator[AsyncIterator[Size]]:
    """Within the block, iterate over the sizes of the terminal ``fd``: the present one first, then each new one.

    The iteration ends when the terminal is gone. UsageError outside the main thread (see ``receive_signals``), where
    sizes have to come from elsewhere.
    """
    with receive_signals({signal.SIGWINCH}) as received:
        yield _sizes(fd, received)


async def _sizes(fd: int, received: AsyncIterator[int]) -> AsyncIterator[Size]:
    last = terminal_size(fd)  # read after the handler is in place: no change can fall between
    if last is not None and any(last):
        yield last
    async for _ in received:
        size = terminal_size(fd)
        if size is None:
            return
        if size != last and any(size):  # 0 by 0 is a terminal that does not know
            last = size
            yield size
