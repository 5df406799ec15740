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
from crungo.runtime.spec import check_names, process_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from crungo.config import ContainerConfig, ExecConfig
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
        env: Mapping[str, str | None] | Iterable[str] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        stdin: bool = False,
    ) -> AsyncIterator[Container]:
        """One of the ready containers, running ``command``, for as long as the block lasts; waits when none is ready.

        ``env`` is added to the environment of the configuration, and ``workdir`` takes the place of its directory; both
        in the forms of :class:`crungo.fields.ExecFields`. A container that was killed while it waited is replaced by
        another one.

        Raises:
            UsageError: a value is malformed, which costs no container; or the pool's block has been left.
            CommandNotFound, CommandNotExecutable: the command cannot be started.
            NotRunning: one container after the other was killed while it waited.
            CrungoError: what a container of this configuration cannot be made for.
        """
        order = self._order(command, env=env, workdir=workdir)
        for _ in range(self._size + 1):
            ready = await self._take()
            try:
                if not await self._hand_over(ready, order, stdin):
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
        timeout: float | str | None = None,
        check: bool = False,
        env: Mapping[str, str | None] | Iterable[str] | None = None,
        workdir: str | os.PathLike[str] | None = None,
    ) -> Completed:
        """Run a command to its end in one of the ready containers.

        ``input``, ``timeout`` and ``check`` as for :meth:`crungo.Engine.run`, the others as for :meth:`container`.
        Waiting for a ready container is part of ``timeout``.
        """
        from crungo.fields import duration

        seconds = None if timeout is None else duration(timeout, "timeout")
        container = self.container(command, env=env, workdir=workdir, stdin=input is not None)
        return await run_to_end(container, input=input, timeout=seconds, check=check)

    def _order(self, command: Sequence[str], **given: Any) -> ExecConfig:
        """What one of the containers is to run, with the image's entrypoint; checked before there is a container."""
        from crungo.fields import configure_exec

        order = configure_exec(command, given)
        check_names(order.env)
        image = None if self._image is None else self._image.config
        arguments = process_arguments(replace(self._config, command=order.command), image)
        for text in (*arguments, *order.env, *order.env.values()):
            if text is not None and "\0" in text:
                raise UsageError(f"pool: {text!r} holds a null character")
        return replace(order, command=tuple(arguments))

    async def _take(self) -> _Ready:
        try:
            ready = await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise UsageError("pool: used outside its `async with` block") from None
        if isinstance(ready, _Ready):
            return ready
        self._group.start_soon(self._add)
        raise ready

    async def _hand_over(self, ready: _Ready, order: ExecConfig, stdin: bool) -> bool:
        """Have it run the command; False if it was killed while it waited, so that another one can run it instead."""
        try:
            data = _encoded(order, ready.container.traits.process)
            if not stdin:
                os.close(ready.container.stdio.take("stdin"))
            try:
                await _write(ready.command, data)
            except BrokenPipeError:  # nobody has read to the end, which the command would have begun with
                return False
            await ready.container._started(order.command[0])
            return True
        finally:
            self._group.start_soon(self._add)  # its successor; not earlier: that would slow this one down

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


def _encoded(order: ExecConfig, process: Mapping[str, Any]) -> bytes:
    """A command in the form of native/crun.c: the number of arguments, directory, arguments, environment."""
    variables = {**dict(entry.split("=", 1) for entry in process["env"]), **order.env}
    parts = [str(len(order.command)), order.workdir or process["cwd"], *order.command]
    parts += [f"{name}={value}" for name, value in variables.items() if value is not None]
    return b"".join(os.fsencode(part) + b"\0" for part in parts)


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
