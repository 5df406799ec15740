"""Warm pools: containers that were created in advance and wait for nothing but their command.

libcrun has made namespaces, mounts and cgroup, and set user, capabilities and seccomp filter; what remains, when one is
handed out, is to send it its command, and execve(2). Each container is used once. Invariant: a container belongs to the
pool until it is handed out, then to whoever took it; in both cases it ends with the block.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from crungo.errors import CrungoError, HostError, NotRunning, UsageError
from crungo.io.fds import Fd, pipe
from crungo.openfiles import naming_the_limit
from crungo.process import Completed, run_to_end
from crungo.records import Record, replace
from crungo.runtime.spec import process_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from crungo.config import ContainerConfig
    from crungo.containers import Container
    from crungo.engine import Engine

__all__ = ["Pool"]

PIPE_CAPACITY = 64 << 10


class _Ready(Record, frozen=False, kw_only=False):
    """A created container, and where its command is to be written."""

    container: Container
    command: Fd

    async def aclose(self) -> None:
        self.command.close()
        await self.container.aclose()


class Pool:
    """Ready containers of one configuration; made by :meth:`crungo.Engine.pool`.

    A container that is taken is replaced at once, in the background.
    """

    def __init__(self, engine: Engine, config: ContainerConfig, size: int) -> None:
        if size < 1:
            raise UsageError(f"pool: a size of at least 1 is expected, not {size}")
        if config.tty:
            raise UsageError("pool: containers with a terminal cannot wait for their command")
        self._engine = engine
        # The program is known later; stdin is closed then if it is not wanted.
        self._config = replace(config, stdin=True, command=("true",))
        self._size = size
        self._stack = AsyncExitStack()
        self._send: MemoryObjectSendStream[_Ready | CrungoError]
        self._receive: MemoryObjectReceiveStream[_Ready | CrungoError]

    async def __aenter__(self) -> Pool:
        self._send, self._receive = anyio.create_memory_object_stream[_Ready | CrungoError](self._size)
        self._image = None if self._config.rootfs is not None else await self._engine.image(self._config)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._drain)
            self._group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._group.cancel_scope.cancel)
            async with anyio.create_task_group() as filling:
                for _ in range(self._size):
                    filling.start_soon(self._add)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Without the block's exception: the task group below would wrap it.
        await self._stack.aclose()

    @asynccontextmanager
    async def container(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        stdin: bool = False,
    ) -> AsyncIterator[Container]:
        """One of the ready containers, running ``command``, for as long as the block lasts; waits when none is ready.

        ``env`` is added to the environment of the configuration. Raises CommandNotFound or CommandNotExecutable when
        the command cannot be started, and what a container of this configuration cannot be made for. A container that
        was killed while it waited is replaced by another one; NotRunning when that happens to all of them.
        """
        for _ in range(self._size + 1):
            ready = await self._take()
            try:
                if not await self._hand_over(ready, command, env or {}, workdir, stdin):
                    continue
                yield ready.container
                return
            finally:
                await ready.aclose()
        raise NotRunning("pool: one container after the other ended while it waited for its command")

    async def run(
        self,
        command: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's word
        timeout: float | None = None,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
    ) -> Completed:
        """Run a command to its end in one of the ready containers; arguments as for :meth:`crungo.Engine.run`."""
        container = self.container(command, env=env, workdir=workdir, stdin=input is not None)
        return await run_to_end(container, input=input, timeout=timeout, check=check)

    async def _take(self) -> _Ready:
        ready = await self._receive.receive()
        if isinstance(ready, _Ready):
            return ready
        self._group.start_soon(self._add)
        raise ready

    async def _hand_over(
        self, ready: _Ready, command: Sequence[str], env: Mapping[str, str], workdir: str | None, stdin: bool
    ) -> bool:
        """Have it run ``command``; False if it was killed while it waited, so that another one can run it instead."""
        try:
            data = self._encoded(ready.container.traits.process, command, env, workdir)
            if not stdin:
                os.close(ready.container.stdio.take("stdin"))
            try:
                await _write(ready.command, data)
            except BrokenPipeError:  # nobody has read to the end, which the command would have begun with
                return False
            await ready.container._started(command[0])
            return True
        finally:
            self._group.start_soon(self._add)  # its successor; not earlier: that would slow this one down

    def _encoded(
        self, process: Mapping[str, Any], command: Sequence[str], env: Mapping[str, str], workdir: str | None
    ) -> bytes:
        """The command in the form of native/crun.c: the number of arguments, directory, arguments, environment."""
        config = replace(self._config, command=tuple(command), workdir=workdir or self._config.workdir)
        image = None if self._image is None else self._image.config
        arguments = process_arguments(config, image)
        variables = {**dict(entry.split("=", 1) for entry in process["env"]), **env}
        parts = [str(len(arguments)), workdir or process["cwd"], *arguments]
        parts += [f"{name}={value}" for name, value in variables.items()]
        for part in parts:
            if "\0" in part:
                raise UsageError(f"pool: {part!r} holds a null character")
        return b"".join(os.fsencode(part) + b"\0" for part in parts)

    async def _add(self) -> None:
        """Make one container ready; a failure is for whoever takes it."""
        try:
            with naming_the_limit("pool"):
                reader, writer = pipe()
        except HostError as error:
            await self._send.send(error)
            return
        try:
            container = await self._engine.create(self._config, command=reader.fileno())
        except CrungoError as error:
            writer.close()
            await self._send.send(error)
            return
        except BaseException:
            writer.close()
            raise
        finally:
            reader.close()
        self._send.send_nowait(_Ready(container, writer))

    async def _drain(self) -> None:
        """End the containers that nobody took."""
        self._send.close()
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                async for ready in self._receive:
                    if isinstance(ready, _Ready):
                        group.start_soon(ready.aclose)
        self._receive.close()


async def _write(command: Fd, data: bytes) -> None:
    """Send the command to a container that reads until the end of it."""

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(command.fileno(), view) :]
        command.close()

    if len(data) <= PIPE_CAPACITY:
        write()  # an empty pipe takes it at once
    else:
        await to_thread.run_sync(write)
