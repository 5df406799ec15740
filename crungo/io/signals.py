"""Signals as events of the loop, and handing them on to a container.

Invariant: what a signal did before is what it does afterwards. (asyncio's ``remove_signal_handler`` leaves the default
action behind, which kills.) A signal has one receiver at a time; a second raises ``anyio.BusyResourceError``.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

import anyio
from anyio import TASK_STATUS_IGNORED

from crungo.errors import NotRunning, UsageError
from crungo.io.sigmask import forwardable_signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from anyio.abc import TaskStatus

__all__ = ["forward_signals", "receive_signals"]

_claimed: set[int] = set()  # changed by the main thread only


@contextmanager
def receive_signals(signals: Iterable[int]) -> Iterator[AsyncIterator[int]]:
    """Receive ``signals`` on this loop within the block: iterate over what is yielded.

    What arrives between entering and iterating is kept; several of a kind may be reported once. UsageError outside
    the main thread, the only one in which Python runs handlers.
    """
    wanted = frozenset(int(number) for number in signals)
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("receiving signals: only the main thread can")
    if wanted & _claimed:
        raise anyio.BusyResourceError("receiving signals on")
    before = {number: signal.getsignal(number) for number in wanted}
    _claimed.update(wanted)
    try:
        with _open_receiver(wanted) as receiver:
            yield receiver
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        _claimed.difference_update(wanted)


def _open_receiver(wanted: frozenset[int]) -> AbstractContextManager[AsyncIterator[int]]:
    """The loop's own receiver. Most real-time signals have no member in ``signal.Signals``; both loops take numbers."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        # anyio's receiver looks every number up in the enumeration on its way out, and fails.
        receiver: AbstractContextManager[AsyncIterator[int]] = trio.open_signal_receiver(*wanted)
        return receiver
    return anyio.open_signal_receiver(*(cast("signal.Signals", number) for number in wanted))


async def forward_signals(
    send: Callable[[int], Awaitable[None]],
    *,
    signals: Iterable[int] | None = None,
    task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
) -> None:
    """Await ``send(signum)`` for each signal that arrives, until cancelled; for ``TaskGroup.start``.

    A container that has just exited (NotRunning) makes a signal pointless, not wrong.
    """
    with receive_signals(forwardable_signals() if signals is None else signals) as received:
        task_status.started()
        async for number in received:
            with suppress(NotRunning):
                await send(int(number))
