"""The user's descriptors on one side, a container's on the other, and everything that flows between them.

Knows nothing of containers: it is given a PTY master, or the near ends of three pipes. Invariant: of the user's
descriptors nothing is closed or changed; the container never gets one of them, only bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import anyio

from crungo.io.endpoints import Sink, write_all
from crungo.io.fds import is_hung_up
from crungo.io.pty import eof_characters, set_size
from crungo.io.pump import Pump, PumpResult, together
from crungo.io.terminal import is_terminal
from crungo.records import Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from crungo.io.fds import Fd
    from crungo.io.modes import ModeTracker
    from crungo.io.pty import Size

__all__ = ["InteractResult", "ProxyResult", "interact", "proxy"]


class InteractResult(Record):
    """Why an interactive session ended, and how its output pump did.

    ``ended``: the container's side of the terminal was closed, all its output is shown. ``hangup``: the user's
    terminal is gone. ``output-gone``: nobody reads the output any more, or it could not be written
    (``output.error``). After the latter two the caller ends the container; closing the master is its SIGHUP.
    """

    reason: Literal["ended", "hangup", "output-gone"]
    output: PumpResult


class ProxyResult(Record):
    """How each direction ended; ``stdin`` is None where there was none or it was cut off by the end of the others."""

    stdin: PumpResult | None
    stdout: PumpResult
    stderr: PumpResult


async def interact(
    master: Fd,
    *,
    stdin: int | None,
    stdout: int,
    resizes: AsyncIterable[Size] | None = None,
    modes: ModeTracker | None = None,
    exited: anyio.Event | None = None,
) -> InteractResult:
    """Connect the user's ``stdin`` and ``stdout`` to the PTY ``master`` until its other side is closed.

    ``stdin`` None: nothing is read (``-t`` without ``-i``). The end of an stdin that is no terminal is typed as the
    terminal's end-of-file character. ``resizes`` (``winch.window_sizes``) are applied to the master; ``modes``
    (``RawTerminal.modes``) sees what a terminal is shown. ``exited``: the program has exited, so that what it left in
    the terminal is shown, and no more is waited for although another process may hold it open (``exec``).

    The master is made non-blocking, and is left open. Raw mode is the caller's (``terminal.RawTerminal``).
    """
    master.set_nonblocking()
    tap = modes.feed if modes is not None and is_terminal(stdout) else None
    output = Pump(master.fileno(), stdout, tap=tap)
    typist = None if stdin is None else _Typist(stdin, master.fileno())
    if typist is not None:
        together(output, typist.pump)
    hung_up = False

    async def read_input(typist: _Typist) -> None:
        nonlocal hung_up
        if await typist.run():
            hung_up = True
            group.cancel_scope.cancel()

    result: PumpResult | None = None
    async with anyio.create_task_group() as group:
        if typist is not None:
            group.start_soon(read_input, typist)
        if resizes is not None:
            group.start_soon(_follow, resizes, master.fileno())
        if exited is not None:
            group.start_soon(_finish_after, exited, output)
        result = await output.run()
        group.cancel_scope.cancel()
    if result is None:  # cut off by the hang-up
        result = PumpResult(moved=output.moved, ending="sink-gone")
    gone = result.ending in ("sink-gone", "sink-failed")
    return InteractResult(reason="hangup" if hung_up else "output-gone" if gone else "ended", output=result)


async def proxy(
    *,
    stdin: tuple[int, Fd] | None,
    stdout: tuple[Fd, int],
    stderr: tuple[Fd, int],
    exited: anyio.Event | None = None,
) -> ProxyResult:
    """Pump between the user's three descriptors and a container's three pipes until both outputs have ended, or one
    has nobody left to read it.

    Each pair is (from, to); the ``Fd``s are the near ends of the container's pipes, closed as soon as their direction
    has ended: the end of the user's stdin is the end of the container's. When nobody reads the user's stdout or stderr
    any more, all ends (``sink-gone``): the program may be PID 1, to which SIGPIPE is nothing, and run forever.
    ``stdin`` None: without ``-i``, the program reads what the caller gave it. ``exited`` as for ``interact``.
    """
    near = [stdout[0], stderr[0], *([stdin[1]] if stdin is not None else [])]
    outputs = [Pump(stdout[0].fileno(), stdout[1]), Pump(stderr[0].fileno(), stderr[1])]
    inputs = [Pump(stdin[0], stdin[1].fileno())] if stdin is not None else []
    together(*outputs, *inputs)
    results: list[PumpResult | None] = [None, None, None]

    async def move(place: int, pump: Pump, end: Fd) -> None:
        try:
            result = results[place] = await pump.run()
        finally:
            end.close()
        if place < 2 and result.ending == "sink-gone":
            group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            if stdin is not None:
                group.start_soon(move, 2, inputs[0], stdin[1])
            if exited is not None:
                group.start_soon(_finish_after, exited, *outputs)
            async with anyio.create_task_group() as output_group:
                output_group.start_soon(move, 0, outputs[0], stdout[0])
                output_group.start_soon(move, 1, outputs[1], stderr[0])
            group.cancel_scope.cancel()
    finally:
        for end in near:
            end.close()
    cut_off = [PumpResult(moved=pump.moved, ending="finished") for pump in outputs]
    return ProxyResult(stdin=results[2], stdout=results[0] or cut_off[0], stderr=results[1] or cut_off[1])


class _Typist:
    """Types everything from ``source`` into the terminal, and then its end."""

    def __init__(self, source: int, master: int) -> None:
        self._source = source
        self._master = master
        self._at_line_start = True
        self.pump = Pump(source, master, tap=self._remember)

    def _remember(self, chunk: memoryview) -> None:
        self._at_line_start = chunk[-1] in b"\r\n"

    async def run(self) -> bool:
        """To the end; True if ``source`` was a terminal that has been hung up."""
        result = await self.pump.run()
        if result.ending != "eof":
            return False
        if is_hung_up(self._source):
            return True
        characters = eof_characters(self._master, at_line_start=self._at_line_start)
        if characters:
            with Sink(self._master) as sink:
                try:
                    await write_all(sink, memoryview(characters))
                except OSError:
                    return False  # the container's side went first
        return False


async def _follow(resizes: AsyncIterable[Size], master: int) -> None:
    async for size in resizes:
        set_size(master, size)


async def _finish_after(exited: anyio.Event, *pumps: Pump) -> None:
    await exited.wait()
    for pump in pumps:
        pump.finish()
