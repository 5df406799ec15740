"""Bytes from one descriptor to another without the loop, for a few milliseconds, where one of them is a terminal.

A terminal moves a page at a time, and its other side is ready again within microseconds: less than a turn of the loop
takes. Reads, writes and the short waits between them are therefore made by one call of native/relay.c, which holds no
interpreter lock. This module alone owns its pointers.

Invariant: what was read and not yet written is kept until the next call, which writes it first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from crungo.io._relay import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Relay", "Stop"]

Why = Literal["empty", "full", "turn", "again", "eof", "source-failed", "sink-failed"]

_ROOM: Final = 128 << 10  # bytes; untouched memory costs nothing
_WHY: Final[dict[int, Why]] = {
    lib.CRUNGO_RELAY_EMPTY: "empty",
    lib.CRUNGO_RELAY_FULL: "full",
    lib.CRUNGO_RELAY_TURN: "turn",
    lib.CRUNGO_RELAY_AGAIN: "again",
    lib.CRUNGO_RELAY_EOF: "eof",
    lib.CRUNGO_RELAY_SOURCE_FAILED: "source-failed",
    lib.CRUNGO_RELAY_SINK_FAILED: "sink-failed",
}

_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)


class Stop(NamedTuple):
    """Why a call came back, what it has read, and the error of an end that failed.

    ``empty``: the source has nothing, and did not have it soon; ``full``: the sink takes nothing, and did not soon;
    ``turn``: the deadline has passed; ``again``: call again, there is no more room to show what was read; ``eof``.
    ``read`` is a view that is valid until the next call.
    """

    why: Why
    read: memoryview
    error: OSError | None


class Relay:
    """One direction between two non-blocking descriptors, both only lent.

    ``gather``: several reads make one write, which suits a sink that is no terminal.
    """

    __slots__ = ("_buffer", "_state", "_view")

    def __init__(self, source: int, sink: int, *, gather: bool) -> None:
        self._buffer = _allocate("char[]", _ROOM)
        self._view = memoryview(ffi.buffer(self._buffer, _ROOM))
        self._state: Any = ffi.new("struct crungo_relay *")
        self._state.source, self._state.sink, self._state.gather = source, sink, gather
        self._state.buffer, self._state.room = self._buffer, _ROOM

    @property
    def moved(self) -> int:
        """Bytes that the sink has taken."""
        moved: int = self._state.moved
        return moved

    def run(self, *, deadline: int, nap: int, flood: int, others: Sequence[tuple[int, int]]) -> Stop:
        """Move bytes until the loop is needed; a signal is a reason to stop waiting.

        ``deadline``: of CLOCK_MONOTONIC, in nanoseconds. ``nap``: how long one wait may take, in milliseconds, and 0
        for not at all. The source is waited for only once ``flood`` bytes have been moved. ``others``: descriptors and
        events of poll(2) that end a wait, too.
        """
        state = self._state
        if len(others) > lib.CRUNGO_RELAY_OTHERS:
            nap, others = 0, []  # nobody is left out
        waited = ffi.new("struct pollfd[]", [(fd, events, 0) for fd, events in others])
        patience = ffi.new(
            "struct crungo_patience *",
            {"deadline": deadline, "nap": nap, "flood": flood, "others": waited, "n_others": len(others)},
        )
        why = _WHY[lib.crungo_relay(state, patience)]
        error = OSError(state.error, os.strerror(state.error)) if why in ("source-failed", "sink-failed") else None
        return Stop(why, self._view[state.fresh : state.end], error)
