"""A running container: the process that it was made for, and what can be done to the container as a whole.

A :class:`Container` lives as long as the block that :meth:`crungo.Engine.container` opened; leaving the block, for
whatever reason, ends it with all that runs inside.
"""

from __future__ import annotations

import json
import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from crungo.errors import CrungoError, NotRunning, SpawnerDied
from crungo.openfiles import naming_the_limit
from crungo.process import Completed, Process, run_to_end
from crungo.runtime.requests import error_from

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any, Unpack

    from anyio import CapacityLimiter
    from anyio.abc import ByteReceiveStream

    from crungo.config import ExecConfig
    from crungo.creation import Traits
    from crungo.fields import ExecFields
    from crungo.runtime.requests import Channel
    from crungo.runtime.stats import Stats
    from crungo.stdio import Stdio

__all__ = ["Container"]

GET_LIMIT = 64 << 20
STATS_INTERVAL = 1.0


class Container(Process):
    """A running container; :attr:`id` is its 64 hex digits."""

    def __init__(
        self,
        identifier: str,
        channel: Channel,
        stdio: Stdio,
        limiter: CapacityLimiter,
        command: str,
        *,
        execute: Callable[[ExecConfig], Awaitable[Process]],
        traits: Traits,
    ) -> None:
        super().__init__(channel, stdio, limiter, command)
        self.id = identifier
        self.traits = traits
        self._execute = execute
        self._serial = 0

    @property
    def name(self) -> str:
        """The configuration's, or the one that was made up."""
        return self.traits.name

    @property
    def labels(self) -> Mapping[str, str]:
        """The image's, and over them the configuration's. Nothing but this keeps them."""
        return self.traits.labels

    @property
    def alive(self) -> bool:
        """Whether anything of it may still be there, also after its program's end."""
        return "gone" not in self._events

    def _has_ended(self) -> bool:
        if self._pidfd < 0 or self.returncode is not None:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    # Further processes.

    @asynccontextmanager
    async def exec(self, command: Sequence[str], **fields: Unpack[ExecFields]) -> AsyncIterator[Process]:
        """A further process in this container, for as long as the block lasts.

        Leaving the block ends it and all that it started, and nothing else; that waits until nothing of it is left.

        Raises:
            CommandNotFound, CommandNotExecutable: its program cannot be started.
            NotRunning: the container has ended.
            LibcrunError: it is paused.
            UsageError: a value is malformed.
        """
        from crungo.fields import configure_exec

        config = configure_exec(command, fields)
        try:
            process = await self._execute(config)
        except CrungoError as error:
            if self._has_ended():  # whatever was in its way then
                raise NotRunning(f"container {self.id[:12]} is not running") from error
            raise
        try:
            yield process
        finally:
            await process.aclose()

    async def run(
        self,
        command: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's word
        timeout: float | str | None = None,
        check: bool = False,
        **fields: Unpack[ExecFields],
    ) -> Completed:
        """Run a further process to its end and capture what it writes.

        Arguments as for :meth:`crungo.Engine.run`, errors as for :meth:`exec`, and TimeoutError and CommandFailed.
        """
        from crungo.fields import check_input, duration

        check_input(input, tty=bool(fields.get("tty")))
        if input is not None:
            fields["stdin"] = True
        seconds = None if timeout is None else duration(timeout, "timeout")
        return await run_to_end(self.exec(command, **fields), input=input, timeout=seconds, check=check)

    # The container as a whole.

    async def stop(self, timeout: float | str | None = None) -> int:
        """Ask the program to end, by the stop signal, and kill it when it has not; returns its exit code.

        The signal is the configuration's, else the image's, else SIGTERM. ``timeout`` (seconds, or a text such as
        ``1m30s``) is the configuration's, ten seconds by default.
        """
        from crungo.fields import duration

        seconds = self.traits.stop_timeout if timeout is None else duration(timeout, "timeout")
        try:
            self.send_signal(self.traits.stop_signal)
            await self._freeze(False)  # a frozen program would not hear of it
        except NotRunning:
            pass
        with anyio.move_on_after(seconds):
            return await self.wait()
        try:
            self.kill()
        except NotRunning:
            pass
        return await self.wait()

    async def pause(self) -> None:
        """Freeze every process of the container; returns when they stand still. Again does nothing.

        Raises:
            NotRunning: the container has ended.
            HostError: the host has no freezer.
        """
        await self._freeze(True)

    async def resume(self) -> None:
        """Let a paused container go on; errors as for :meth:`pause`."""
        await self._freeze(False)

    async def update(
        self,
        *,
        memory: int | str | None = None,
        memory_swap: int | str | None = None,
        cpus: float | str | None = None,
        pids_limit: int | str | None = None,
    ) -> None:
        """Change limits while it runs; what is not given stays, and 0 or -1 lifts a limit.

        Setting ``memory`` sets its sum with swap to the same, unless ``memory_swap`` says otherwise.

        Raises:
            UsageError: a value is malformed, or contradicts another.
            NotRunning: the container has ended.
            LibcrunError: the kernel refuses; for instance, more memory is in use than would be allowed.
        """
        from crungo.fields import limits_of
        from crungo.runtime.limits import changed_resources

        limits = limits_of(memory=memory, memory_swap=memory_swap, cpus=cpus, pids_limit=pids_limit)
        if limits:
            resources = changed_resources(limits, swap_limit=self.traits.swap_limit)
            await self._ask({"op": "update", "resources": json.dumps(resources).encode()})

    def stats(self, interval: float | str = STATS_INTERVAL) -> AsyncIterator[Stats]:
        """What it uses: now, and then every ``interval`` (seconds, or a text such as ``500ms``) until its end.

        The counters of each :class:`crungo.Stats` are totals since its start, of all its processes; the load is the
        difference of two.
        """
        from crungo.fields import duration

        return _Readings(self, duration(interval, "interval"))

    # Its files.

    async def put(
        self,
        path: str | os.PathLike[str],
        data: bytes | os.PathLike[str] | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Write a file of the container, whole or not at all; directories above it that are missing are made.

        ``data`` is its content, as bytes or as an asynchronous stream of them, or the path of a local file, or of a
        local directory, which is copied with all below it. ``mode`` (permission bits) and ``owner`` (uid and gid as
        seen inside) are those of the file that was there, else 0644 and root's; for local files and directories,
        theirs. What is at ``path`` is replaced, also a symbolic link; links above it are followed inside the
        container, never out of it.

        Raises:
            NotRunning: the container has ended.
            FileError: it cannot be written, with the reason of the system.
            HostError: no more files can be opened, here or on the host; as for all that works on files.
        """
        from crungo.files import Files

        await Files(self).put(path, data, mode=mode, owner=owner)

    async def get(self, path: str | os.PathLike[str], *, limit: int = GET_LIMIT) -> bytes:
        """The content of a regular file of the container, at most ``limit`` bytes; links are followed inside it.

        Raises:
            NotRunning: the container has ended.
            FileError: there is no such file, it is of another kind, or larger.
        """
        from crungo.files import Files

        return await Files(self).get(path, limit)

    async def put_archive(
        self,
        path: str | os.PathLike[str],
        data: bytes | AsyncIterable[bytes],
        *,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Unpack a tar archive (plain, gzip, bzip2 or xz) into a directory of the container, made if it is missing.

        ``data`` is the archive, as bytes or as an asynchronous stream of them.
        Names are relative to it; ``..`` is refused, and so are devices. ``owner`` replaces the owners in the archive.

        Raises:
            NotRunning: the container has ended.
            FileError: the archive is malformed, or something of it cannot be written.
        """
        from crungo.files import Files

        await Files(self).put_archive(path, data, owner=owner)

    def get_archive(self, path: str | os.PathLike[str]) -> AbstractAsyncContextManager[ByteReceiveStream]:
        """A file or directory of the container as a tar archive: a byte stream, for as long as the block lasts.

        The names in it begin with the last part of ``path``. Sockets are left out, and so is what is mounted on
        ``/proc``, ``/sys`` and ``/dev``.

        Raises:
            NotRunning: the container has ended.
            FileError: there is no such file; also, from the stream, when one of them cannot be read.
        """
        from crungo.files import Files

        return Files(self).get_archive(path)

    # From here on for ourselves.

    def kill(self) -> None:
        """Send SIGKILL, also to a paused container; all its processes end with its first one."""
        from crungo.runtime.freezer import thaw

        super().kill()
        with naming_the_limit("kill"):
            thaw(self.id)

    async def _freeze(self, frozen: bool) -> None:
        from crungo.runtime.freezer import freeze, thaw

        what = "pause" if frozen else "resume"
        with naming_the_limit(what):
            if self.returncode is not None or not await to_thread.run_sync(freeze if frozen else thaw, self.id):
                raise NotRunning(f"{what}: the container has ended")

    async def _ask(self, message: dict[str, Any]) -> None:
        """Have the spawner do something to the container, and wait until it is done."""
        self._serial += 1
        name = f"reply {self._serial}"
        try:
            await to_thread.run_sync(self._channel.send, {**message, "reply": name})
        except SpawnerDied:
            pass  # or the container has ended, and its channel with it: the events tell
        reply = await self._event(name, "exited", "gone")
        if reply["event"] != name:
            raise NotRunning(f"{message['op']}: the container has ended")
        del self._events[name]
        if reply["error"] is not None:
            raise error_from(reply["error"])


class _Readings:
    """Figures of a container, one after the other. Not a generator, which its user would have to close."""

    def __init__(self, container: Container, interval: float) -> None:
        self._container = container
        self._interval = interval
        self._next: float | None = None

    def __aiter__(self) -> _Readings:
        return self

    async def __anext__(self) -> Stats:
        from crungo.runtime.stats import read_stats

        if self._next is not None:
            with anyio.move_on_after(self._next - anyio.current_time()):
                await self._container.wait()
        self._next = anyio.current_time() + self._interval
        with naming_the_limit("stats"):
            alive = self._container.returncode is None
            now = await to_thread.run_sync(read_stats, self._container.id) if alive else None
        if now is None:
            raise StopAsyncIteration
        return now
