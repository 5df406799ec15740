"""Moving bytes from one descriptor to another, on the caller's loop, until the source ends.

Invariant: every byte that was taken from the source is written to the sink, in order and unchanged, unless the sink
refuses it or the pump is cancelled; neither descriptor is closed, nor its flags changed.

From a pipe to a pipe or file the kernel moves the pages itself (splice(2)); ``SPLICE_F_NONBLOCK`` makes that safe
on blocking descriptors. What comes from or goes to a terminal is moved by ``relay.Relay``, which waits without the loop
while the terminal floods, as long as no other pump of the session has anything to do. Everything else is copied
through one buffer per thread: between a read and the write that follows there is no await, and only what the sink did
not take is kept, so that a thousand idle pumps hold no buffers. A regular file is copied too, although it could be
spliced: its pages in a pipe would be the host's page cache itself, in the hands of the container.

The process must ignore SIGPIPE, as Python does unless told otherwise.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import anyio
from anyio.lowlevel import checkpoint

from crungo.io.endpoints import GONE, Sink, Source
from crungo.io.fds import Kind, kind_of, widen
from crungo.records import Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Ending", "Pump", "PumpResult", "pump", "together"]

Ending = Literal["eof", "finished", "sink-gone", "source-failed", "sink-failed"]

_COPY: Final = 256 << 10  # bytes of the shared buffer
_SPLICE: Final = 1 << 20  # bytes asked of one splice(2)
_WIDEN_AFTER: Final = 1 << 20  # bytes moved before the pipes are made larger
_WIDE: Final = 1 << 20  # bytes
_SLICE: Final = 4_000_000  # nanoseconds that a pump may run while it never has to wait for long
# Milliseconds that it may wait without the loop, at the end of its slice at the latest. Longer than the kernel's tick
# (4 ms): a timer that is due before it has to be set in hardware, which in a virtual machine is a call of the host's.
_NAP: Final = 5
_FLOOD: Final = 2048  # bytes that it has moved in its slice when it waits so for the source

# Splice is not for these two (splice(2): EINVAL), or a sandbox forbids it: copy instead.
_NOT_SPLICED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})

_local = threading.local()


class PumpResult(Record):
    """How a pump ended, and after how many bytes.

    ``eof``: the source has ended and the sink has everything. ``finished``: ``Pump.finish`` was called and nothing
    more was at hand. ``sink-gone``: nobody reads the sink any more. ``source-failed`` and ``sink-failed``:
    ``error`` says why (a directory was read, a disk is full).
    """

    moved: int
    ending: Ending
    error: OSError | None = None


class Pump:
    """One direction: from the descriptor ``source`` to the descriptor ``sink``, both only lent.

    ``tap`` sees all that is moved, in order, in chunks, within the turn of the loop in which they are written; the view
    is valid during the call only.
    """

    __slots__ = (
        "_awaited",
        "_begun",
        "_deadline",
        "_finishing",
        "_idle",
        "_others",
        "_sink",
        "_source",
        "_tap",
        "moved",
    )

    def __init__(self, source: int, sink: int, *, tap: Callable[[memoryview], None] | None = None) -> None:
        self._source = source
        self._sink = sink
        self._tap = tap
        self._others: tuple[Pump, ...] = ()
        self._finishing = False
        self._idle: anyio.CancelScope | None = None
        self._awaited: dict[int, int] | None = {}  # events by descriptor that it waits for; None: for its turn
        self._deadline = 0
        self._begun = 0  # how much had been moved when the slice began
        self.moved = 0

    def finish(self) -> None:
        """Let ``run`` end as soon as the source has nothing more at hand, although it has not ended.

        For a program that has exited while a child of its, still alive, holds the other end. To be called on the
        loop. Nothing that the program wrote is lost: a pipe has it at once, and reading a PTY master first
        waits for the kernel's queue of pending output to be delivered (n_tty_read).
        """
        self._finishing = True
        if self._idle is not None:
            self._idle.cancel()

    async def run(self) -> PumpResult:
        """Move bytes until the source ends. To be called once.

        Raises ``anyio.BusyResourceError`` where another task already waits for the same descriptor, and
        ``anyio.ClosedResourceError`` where the owner closed it with ``anyio.notify_closing`` meanwhile.
        """
        self._awaited = None
        await checkpoint()
        self._start_slice()
        if self._tap is None and _can_splice(self._source, self._sink):
            result = await self._run_splice()
            if result is not None:
                return result
        with Source(self._source) as source, Sink(self._sink) as sink:
            if Kind.TERMINAL in (source.kind, sink.kind) and source.plain and sink.plain:
                return await self._run_relay(source, sink)
            return await self._run_copy(source, sink)

    # --- splice ------------------------------------------------------------------------------------------------

    async def _run_splice(self) -> PumpResult | None:
        """Splice until the end; None when the kernel does not splice these two, with no byte lost."""
        wide = False
        contradictions = 0
        while True:
            try:
                count = os.splice(self._source, self._sink, _SPLICE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                ready = await self._wait_either()
                if ready == "finished":
                    return self._end("finished")
                # Both sides ready and yet EAGAIN: somebody else reads or writes there too. Should it go on, leave
                # it to the copying loop rather than spin.
                contradictions = contradictions + 1 if ready == "both" else 0
                if contradictions > 8:
                    return None
                continue
            except OSError as error:
                return None if error.errno in _NOT_SPLICED else self._refused(error)
            if count == 0:
                return self._end("eof")
            contradictions = 0
            self.moved += count
            if not wide and self.moved >= _WIDEN_AFTER:
                wide = True
                # Only now: large pipes count against the user's pipe-user-pages-soft, and most streams are short.
                widen(self._source, _WIDE)
                widen(self._sink, _WIDE)
            if time.perf_counter_ns() >= self._deadline:
                await self._yield()

    async def _wait_either(self) -> Literal["waited", "both", "finished"]:
        """After EAGAIN: wait for the side that is not ready."""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._sink, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll(0)}
        if self._source not in ready:
            wait = partial(anyio.wait_readable, self._source)
            return "waited" if await self._wait_source(self._source, wait) else "finished"
        if self._sink not in ready:
            await self._wait_sink(self._sink, partial(anyio.wait_writable, self._sink))
            return "waited"
        await checkpoint()
        self._start_slice()
        return "both"

    # --- terminals ---------------------------------------------------------------------------------------------

    async def _run_relay(self, source: Source, sink: Sink) -> PumpResult:
        from crungo.io.relay import Relay

        # Another terminal takes its bytes in still smaller pieces than a page: collecting them first would only have
        # its reader wait for the program and then the program for its reader, where both could work at a time.
        relay = Relay(source.fd, sink.fd, gather=sink.kind is not Kind.TERMINAL)
        while True:
            others = self._awaited_by_others()
            stop = relay.run(
                deadline=self._deadline,
                nap=0 if others is None or self._finishing else _NAP,
                flood=self._begun + _FLOOD,
                others=others or (),
            )
            self.moved = relay.moved
            if self._tap is not None and stop.read:
                self._tap(stop.read)
            match stop.why:
                case "empty":
                    if not await self._wait_source(source.fd, source.wait):
                        return self._end("finished")
                case "full":
                    await self._wait_sink(sink.fd, sink.wait)
                case "turn":
                    await self._yield()
                case "again":
                    pass
                case "eof":
                    return self._end("eof")
                case "source-failed":
                    gone = stop.error is not None and source.is_ended_by(stop.error)
                    return self._end("eof") if gone else self._end("source-failed", stop.error)
                case "sink-failed":
                    gone = stop.error is not None and sink.is_gone_by(stop.error)
                    return self._end("sink-gone") if gone else self._end("sink-failed", stop.error)

    def _awaited_by_others(self) -> list[tuple[int, int]] | None:
        """Descriptors and events that the other pumps of the session wait for; None if one waits for its turn."""
        events: list[tuple[int, int]] = []
        for other in self._others:
            if other._awaited is None:
                return None
            events += other._awaited.items()
        return events

    # --- copy --------------------------------------------------------------------------------------------------

    async def _run_copy(self, source: Source, sink: Sink) -> PumpResult:
        read, write, tap, clock = source.read_into, sink.write, self._tap, time.perf_counter_ns
        buffer = _scratch()
        while True:
            try:
                count = read(buffer)
            except BlockingIOError:
                if not await self._wait_source(source.fd, source.wait):
                    return self._end("finished")
                continue
            except OSError as error:
                return self._end("source-failed", error)
            if count == 0:
                return self._end("eof")
            chunk = buffer[:count]
            if tap is not None:
                tap(chunk)
            try:
                written = write(chunk)
                self.moved += written
                if written < count:
                    await self._write(sink, chunk[written:])
            except OSError as error:
                return self._refused(error)
            if clock() >= self._deadline:
                await self._yield()

    async def _write(self, sink: Sink, left: memoryview) -> None:
        """Write the rest of a chunk that the sink did not take at once."""
        # The buffer belongs to the thread: what must survive an await has to leave it.
        left = memoryview(bytes(left))
        while left:
            await self._wait_sink(sink.fd, sink.wait)
            count = sink.write(left)
            self.moved += count
            left = left[count:]

    # --- both --------------------------------------------------------------------------------------------------

    async def _wait_source(self, fd: int, wait: Callable[[], Awaitable[None]]) -> bool:
        """Wait for what is read from; False if that has been finished instead."""
        if self._finishing:
            return False
        with anyio.CancelScope() as self._idle:
            self._awaited = {fd: select.POLLIN}
            await wait()
        self._idle = None
        self._start_slice()
        return True

    async def _wait_sink(self, fd: int, wait: Callable[[], Awaitable[None]]) -> None:
        self._awaited = {fd: select.POLLOUT}
        await wait()
        self._start_slice()

    def _start_slice(self) -> None:
        self._awaited = None
        self._begun = self.moved
        self._deadline = time.perf_counter_ns() + _SLICE

    async def _yield(self) -> None:
        await checkpoint()
        self._start_slice()

    def _end(self, ending: Ending, error: OSError | None = None) -> PumpResult:
        self._awaited = {}
        return PumpResult(moved=self.moved, ending=ending, error=error)

    def _refused(self, error: OSError) -> PumpResult:
        return self._end("sink-gone") if error.errno in GONE else self._end("sink-failed", error)


def together(*pumps: Pump) -> None:
    """Have none of these pumps, which share a loop, keep another waiting while it waits without the loop itself."""
    for pump in pumps:
        pump._others = tuple(other for other in pumps if other is not pump)


async def pump(source: int, sink: int, *, tap: Callable[[memoryview], None] | None = None) -> PumpResult:
    """Move bytes from ``source`` to ``sink`` until the source ends; see ``Pump``."""
    return await Pump(source, sink, tap=tap).run()


def _can_splice(source: int, sink: int) -> bool:
    """Whether it is worth a try; splice(2) itself refuses the rest (a file in append mode), taking nothing."""
    return kind_of(source) is Kind.PIPE and kind_of(sink) in (Kind.PIPE, Kind.READY)


def _scratch() -> memoryview:
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(_COPY))
    return buffer
