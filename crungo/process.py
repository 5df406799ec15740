"""What a caller holds of a process in a container, its first one or a further one, and the result of a run.

A :class:`Process` has the shape of :class:`anyio.abc.Process`: streams, ``wait``, signals, ``returncode``. It lives as
long as the block that opened it; leaving the block, for whatever reason, ends it.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio import to_thread

from crungo.errors import CommandFailed, CommandNotExecutable, CommandNotFound, CrungoError, NotRunning
from crungo.records import Record
from crungo.registry.groups import single_failure
from crungo.runtime.requests import error_from

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from anyio import CapacityLimiter
    from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream

    from crungo.io.output import Output, StreamName
    from crungo.runtime.requests import Channel, Request
    from crungo.stdio import Stdio

__all__ = ["Completed", "Process", "run_to_end"]

READ_SIZE = 1 << 20
KILL_LIMIT = 2.0
"""Seconds that a killed process may take to end; a first process waits for all others of its container."""

CLEAN_UP_LIMIT = 30.0
"""Seconds that leaving a block waits for the spawner's word that nothing is left."""


class Completed(Record):
    """The result of a run: the exit code as a shell sees it (128+n for signal n), and what was captured."""

    returncode: int
    stdout: bytes | None
    stderr: bytes | None


class Process:
    """A process in a container: its first one, or one started by ``exec``."""

    def __init__(self, channel: Channel, stdio: Stdio, limiter: CapacityLimiter, command: str) -> None:
        self.stdio = stdio
        self._channel = channel
        self._limiter = limiter
        self._command = command
        self._events: dict[str, dict[str, Any]] = {}
        self._reading = anyio.Lock(fast_acquire=True)  # waiting for an event is a checkpoint anyway
        self._pid = 0
        self._pidfd = -1
        self._streams: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """The process id of the first process, in the caller's pid namespace."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """The exit code, 128+n after signal n, or None while it runs."""
        exited = self._events.get("exited")
        return None if exited is None else exited["code"]

    @property
    def stdin(self) -> ByteSendStream | None:
        """Bytes to the program, or None when it was made without ``stdin=True``."""
        return self._stream("stdin", "FdSendStream")  # type: ignore[no-any-return]

    @property
    def stdout(self) -> ByteReceiveStream | None:
        """Bytes from the program's standard output; with a terminal, None."""
        return self._stream("stdout", "FdReceiveStream")  # type: ignore[no-any-return]

    @property
    def stderr(self) -> ByteReceiveStream | None:
        """Bytes from the program's standard error; with a terminal, None."""
        return self._stream("stderr", "FdReceiveStream")  # type: ignore[no-any-return]

    @property
    def terminal(self) -> ByteStream | None:
        """Both directions of the program's terminal, or None without one."""
        return self._stream("terminal", "FdStream")  # type: ignore[no-any-return]

    async def wait(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        exited = await self._event("exited")
        code: int = exited["code"]
        return code

    def output(self, max_bytes: int = READ_SIZE) -> AsyncIterator[Output]:
        """What the program writes, as it comes: pieces of at most ``max_bytes``, until it has closed its outputs.

        Each is ``(stream, data, time)``: ``"stdout"``, ``"stderr"`` or, with a terminal, ``"terminal"``; the bytes; and
        when they were read, in seconds since the epoch. Nothing is read ahead: while nobody asks for the next piece, a
        program that writes on waits. To be iterated once, and instead of the streams.
        """
        from crungo.io.output import OutputPieces

        names: tuple[StreamName, ...] = ("stdout", "stderr", "terminal")
        streams: dict[StreamName, Any] = {name: getattr(self, name) for name in names}
        return OutputPieces({name: stream for name, stream in streams.items() if stream is not None}, max_bytes)

    async def communicate(self, input: bytes | None = None) -> Completed:  # noqa: A002 - subprocess's word
        """Send ``input`` to the program, collect what it writes until it closes its streams, and wait for its end.

        What a terminal shows is ``stdout``.

        Raises:
            UsageError: ``input`` is something else than bytes, or the program has a terminal.
        """
        from crungo.fields import check_input

        check_input(input, tty=self.terminal is not None)
        collected: dict[str, bytes | None] = {"stdout": None, "stderr": None}

        async def collect(name: str, stream: ByteReceiveStream) -> None:
            parts = []
            try:
                while True:
                    parts.append(await stream.receive(READ_SIZE))
            except anyio.EndOfStream:
                collected[name] = b"".join(parts)

        with single_failure():
            async with anyio.create_task_group() as group:
                if self.terminal is not None:
                    group.start_soon(collect, "stdout", self.terminal)
                if self.stdout is not None:
                    group.start_soon(collect, "stdout", self.stdout)
                if self.stderr is not None:
                    group.start_soon(collect, "stderr", self.stderr)
                if self.stdin is not None:
                    group.start_soon(_feed, self.stdin, input or b"")
                group.start_soon(self.wait)  # fails with the spawner, when the streams may stay open
        return Completed(returncode=await self.wait(), stdout=collected["stdout"], stderr=collected["stderr"])

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process; raises NotRunning when it has ended."""
        if self._pidfd < 0:
            raise NotRunning("send signal: the process has not been started")
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            raise NotRunning("send signal: the process has ended") from None

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; all other processes of the container end with its first one."""
        self.send_signal(signal.SIGKILL)

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of the terminal; the program gets SIGWINCH."""
        from crungo.io.pty import Size, set_size

        master = self.stdio.terminal if self.stdio.terminal >= 0 else self._terminal_fd
        set_size(master, Size(columns, rows))

    async def aclose(self) -> None:
        """End the process and wait until nothing of it is left. Shielded, and bounded in time."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLEAN_UP_LIMIT):
            self._channel.end()
            try:
                await self._event("gone")
            except CrungoError:
                # The spawner is gone. This ends the process all the same, and its successor finds what is left.
                await self._kill_without_spawner()
        for stream in self._streams.values():
            stream.close()
        self.stdio.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._channel.close()

    async def _kill_without_spawner(self) -> None:
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        with anyio.move_on_after(KILL_LIMIT):
            await anyio.wait_readable(self._pidfd)
            try:  # where we are the subreaper, or process 1, it is ours now
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - it does not wait
            except ChildProcessError:
                pass

    # From here on for the engine.

    async def _launch(self, request: Request, until: Literal["created", "started"] = "started") -> None:
        """Ask for the process, and wait in a worker thread until it is there; ends it when that does not work out.

        Cancelling orders the end through the channel, which also ends the thread's wait; it is awaited, because until
        then it is the one that reads.
        """
        try:
            if not self._settled(until):
                await self._launch_cancellably(request, until)
            self._raise_failure()
        except BaseException:
            request.close()
            await self.aclose()
            raise

    async def _launch_cancellably(self, request: Request, until: str) -> None:
        begun = threading.Lock()  # the first who takes it decides whether the thread does anything
        ended = threading.Event()

        def work() -> None:
            if begun.acquire(blocking=False):
                try:
                    self._read_until(request, until)
                finally:
                    ended.set()

        try:
            await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        except anyio.get_cancelled_exc_class():
            self._channel.end()
            if not begun.acquire(blocking=False):
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(ended.wait)
            raise

    def _settled(self, until: str) -> bool:
        """Whether it was heard that the process has come so far, or that it never will."""
        return bool(self._events.keys() & {until, "error", "gone"})

    def _read_until(self, request: Request, until: str) -> None:
        request.send()
        while not self._settled(until):
            self._take(*self._channel.receive())

    async def _started(self, command: str) -> None:
        """Wait for ``command``, of a process that was only created, and raise what kept it from starting."""
        self._command = command
        while not self._settled("started"):
            async with self._reading:
                await anyio.wait_readable(self._channel)
                self._take(*self._channel.receive())
        self._raise_failure()

    def _hear(self, messages: list[tuple[dict[str, Any], list[int]]]) -> None:
        """Take over what was heard of the process before it was ours."""
        while messages:
            self._take(*messages.pop(0))

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        self._events[message["event"]] = message
        if message["event"] == "created":
            self._pid, self._pidfd = message["pid"], fds[0]
            if len(fds) > 1:
                self.stdio.terminal = fds[1]
        else:
            for fd in fds:
                os.close(fd)

    async def _event(self, *names: str) -> dict[str, Any]:
        """The event of this name; of several, the first in their order that has come."""
        while True:
            for name in names:
                if name in self._events:
                    return self._events[name]
            async with self._reading:
                if not self._events.keys() & set(names):
                    await anyio.wait_readable(self._channel)
                    self._take(*self._channel.receive())

    def _raise_failure(self) -> None:
        failed = self._events.get("error")
        if failed is None:
            return
        if failed["kind"] != "exec":
            raise error_from(failed)
        from crungo.runtime.refusals import wrong_directory

        number = failed["errno"]
        if (wrong := wrong_directory(failed["message"], number)) is not None:
            raise wrong
        # ENOENT and ENOTDIR: there is no such file; anything else: there is, and it cannot be executed.
        if number in (2, 20):
            where = "no such file or directory" if "/" in self._command else "executable file not found in $PATH"
            raise CommandNotFound(f'exec "{self._command}": {where}')
        raise CommandNotExecutable(f'exec "{self._command}": {os.strerror(number).lower()}')

    def _stream(self, name: str, kind: str) -> Any:
        if name not in self._streams:
            fd = self.stdio.take(name)
            if fd < 0:
                return None
            from crungo.io import streams

            self._streams[name] = getattr(streams, kind)(fd)
        return self._streams[name]

    @property
    def _terminal_fd(self) -> int:
        stream = self._streams.get("terminal")
        if stream is None:
            raise NotRunning("resize: the process has no terminal")
        fd: int = stream.fileno()
        return fd


async def _feed(stream: ByteSendStream, data: bytes) -> None:
    try:
        await stream.send(data)
    except anyio.BrokenResourceError:
        pass  # the program did not want all of it
    await stream.aclose()


async def run_to_end(
    process: AbstractAsyncContextManager[Process],
    *,
    input: bytes | None,  # noqa: A002 - subprocess's word
    timeout: float | None,
    check: bool,
) -> Completed:
    """Feed, collect and wait, all at once; TimeoutError after ``timeout`` seconds, CommandFailed with ``check``."""
    from crungo.fields import check_input

    check_input(input)
    with anyio.move_on_after(timeout) as scope:
        async with process as running:
            result = await running.communicate(input)
    if scope.cancelled_caught:
        raise TimeoutError(f"not done within {timeout:g} seconds")
    if check and result.returncode != 0:
        raise CommandFailed(result.returncode, result.stdout, result.stderr)
    return result
