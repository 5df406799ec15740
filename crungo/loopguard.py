"""Noticing that an event loop was closed while something still belonged to it.

``asyncio.run`` and ``trio.run`` cancel what is left before they end. A program that drives its loop by hand may stop
and close it in the middle: then no block is left, no ``finally`` runs, and the frames that hold our objects live on,
held by the loop's idle worker threads. What such a loop does drop is what was scheduled on it.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable

__all__ = ["LoopGuard"]

NEVER = 10 * 365 * 86400.0
"""Seconds. A loop sleeps a day at most, whatever is scheduled."""


class _Token:
    """Calls ``action`` when it is dropped, unless it was disarmed."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    def keep(self) -> None:
        """What the loop is asked to call; it never does."""

    def __del__(self) -> None:
        action, self.action = self.action, None
        if action is not None:
            action()


class LoopGuard:
    """Calls ``action`` when the running loop is closed before :meth:`disarm`. On trio there is nothing to guard."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._token: weakref.ref[_Token] | None = None
        self._timer: weakref.ref[TimerHandle] | None = None
        asyncio = sys.modules.get("asyncio")
        try:
            loop = asyncio.get_running_loop() if asyncio is not None else None
        except RuntimeError:
            return
        if loop is None:
            return
        token = _Token(action)
        # Held by the loop alone: our own references must not outlive it.
        self._timer = weakref.ref(loop.call_later(NEVER, token.keep))
        self._token = weakref.ref(token)

    def disarm(self) -> None:
        """The guarded thing has ended in order."""
        token = None if self._token is None else self._token()
        if token is not None:
            token.action = None
        timer = None if self._timer is None else self._timer()
        if timer is not None:
            timer.cancel()
