"""``crungo run``: a container of its own, with the user's terminal or streams connected, for as long as it lives."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from crungo.cli.foreign import warn_if_foreign
from crungo.cli.spared import Spared
from crungo.engine import Engine
from crungo.errors import ContainerError, UsageError
from crungo.io.endpoints import Sink, write_all
from crungo.io.fds import Fd, pipe
from crungo.io.session import interact, proxy
from crungo.io.sigmask import let_through
from crungo.io.signals import forward_signals
from crungo.io.terminal import RawTerminal, is_terminal
from crungo.io.winch import window_sizes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from crungo.cli.run_options import RunOptions
    from crungo.containers import Container
    from crungo.creation import Creation
    from crungo.io.pump import PumpResult
    from crungo.paths import Roots
    from crungo.registry.progress import ProgressEvent
    from crungo.runtime.requests import SpawnerProcess

__all__ = ["execute"]

STDIN, STDOUT, STDERR = 0, 1, 2


def execute(
    options: RunOptions, roots: Roots, spawner: SpawnerProcess, creation: Creation | None, held: frozenset[int]
) -> int:
    """Run the container, or go on with its ``creation``, which the spawner was sent; returns its exit code.

    ``held`` are signals that were held back, to be handed on. Errors are raised for the caller to print.
    """
    return anyio.run(_run, options, roots, spawner, creation, held)


async def ready() -> None:
    """Nothing. To run it imports all that running anything takes."""


async def _run(
    options: RunOptions, roots: Roots, spawner: SpawnerProcess, creation: Creation | None, held: frozenset[int]
) -> int:
    if creation is None or creation.event("started") is None:
        let_through(held)  # as long as there is nobody to hand them to, they are ours
    async with AsyncExitStack() as stack:
        write_id = await stack.enter_async_context(_id_file(options.cidfile)) if options.cidfile else None
        progress = None if options.quiet else _Progress(stack, missing=options.config.pull == "missing")
        async with (
            Engine(
                root=roots.root, run=roots.run, progress=progress, authfile=options.authfile, spawner=spawner
            ) as engine,
            anyio.create_task_group() as group,
        ):
            if progress is not None:
                progress.group = group
            container = await (_create(engine, options, group) if creation is None else engine.adopt(creation))
            try:
                if write_id is not None:
                    await write_id(container.id)
                return await _attend(container, options, group, held)
            finally:
                await container.aclose()
                group.cancel_scope.cancel()
    raise AssertionError("unreachable")


class _Progress:
    """The display of a pull, made when there is a first event to show: most runs pull nothing."""

    group: anyio.abc.TaskGroup

    def __init__(self, stack: AsyncExitStack, *, missing: bool) -> None:
        self._stack = stack
        self._missing = missing
        self._take: Callable[[ProgressEvent], None] | None = None

    def __call__(self, event: ProgressEvent) -> None:
        if self._take is None:
            from crungo.cli.progress import pull_progress

            display = self._stack.enter_context(pull_progress(STDERR, missing=self._missing))
            self._take = self._stack.enter_context(display.follow())
            self.group.start_soon(display.keep_fresh)
        self._take(event)


@asynccontextmanager
async def _id_file(path: str) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """The file that gets the container's id: made before anything else, removed when there is no container."""
    import aiofiles

    try:
        file = await aiofiles.open(path, "x")
    except OSError as error:
        why = "it exists; remove it, or name another" if isinstance(error, FileExistsError) else error.strerror
        raise UsageError(f"--cidfile {path}: {why}") from None
    written = False

    async def write(identifier: str) -> None:
        nonlocal written
        await file.write(identifier)
        await file.flush()
        written = True

    try:
        yield write
    finally:
        with anyio.CancelScope(shield=True):
            await file.close()
        if not written:
            os.unlink(path)


async def _create(engine: Engine, options: RunOptions, group: anyio.abc.TaskGroup) -> Container:
    if options.config.rootfs is None and options.config.pull in ("missing", "never"):  # else it is for this machine
        warn_if_foreign(options.config, (await engine.image(options.config)).config)
    if not options.crun_debug:
        return await engine.create(options.config)
    reader, writer = pipe()
    group.start_soon(_show_log, reader)
    try:
        return await engine.create(options.config, log=writer.fileno())
    finally:
        writer.close()


async def _show_log(reader: Fd) -> None:
    """libcrun's log to stderr. It names what images bring, paths and users among them."""
    from crungo.cli.plain import PlainText
    from crungo.io.streams import FdReceiveStream

    plain = PlainText()
    stream = FdReceiveStream(reader)
    # It ends by itself, when the last process of libcrun's has.
    with reader, Sink(STDERR) as sink, anyio.CancelScope(shield=True), suppress(OSError):  # nobody reads it
        async for chunk in stream:
            await write_all(sink, memoryview(plain.feed(chunk)))
        await write_all(sink, memoryview(plain.feed(b"", final=True)))


async def _attend(container: Container, options: RunOptions, group: anyio.abc.TaskGroup, held: frozenset[int]) -> int:
    """Connect the container until its end; returns its exit code."""
    exited = anyio.Event()

    async def watch() -> None:
        await container.wait()
        exited.set()

    spared = Spared(container, STDERR if is_terminal(STDERR) and not options.config.tty else None)

    async def send(signum: int) -> None:
        container.send_signal(signum)
        spared.note(signum)

    group.start_soon(watch)
    if options.sig_proxy:
        await group.start(lambda *, task_status: forward_signals(send, task_status=task_status))
        let_through(held)
    if options.config.tty:
        early = await _terminal(container, options)
    else:
        early = await _streams(container, exited)
    return await container.wait() if early is None else early


async def _streams(container: Container, exited: anyio.Event) -> int | None:
    """Connect the user's streams; the exit code when they went away before the container did."""
    stdin = container.stdio.take("stdin")
    result = await proxy(
        stdin=None if stdin < 0 else (STDIN, Fd(stdin)),
        stdout=(Fd(container.stdio.take("stdout")), STDOUT),
        stderr=(Fd(container.stdio.take("stderr")), STDERR),
        exited=exited,
    )
    return _early_end(result.stdout) or _early_end(result.stderr)


def _early_end(output: PumpResult) -> int | None:
    """The exit code when nobody reads an output any more: the program may be PID 1, to which SIGPIPE is nothing."""
    if output.ending == "sink-gone":
        return 128 + signal.SIGPIPE
    if output.ending == "sink-failed":
        raise ContainerError(f"write output: {output.error.strerror if output.error else 'failed'}")
    return None


async def _terminal(container: Container, options: RunOptions) -> int | None:
    """Connect the user's terminal; the exit code when that went away before the container did."""
    master = Fd(container.stdio.take("terminal"))
    with master, ExitStack() as stack:
        own = next((fd for fd in (STDIN, STDOUT) if is_terminal(fd)), None)
        modes = None
        resizes = None
        if own is not None:
            resizes = stack.enter_context(window_sizes(own))
            if options.config.stdin and is_terminal(STDIN):
                modes = stack.enter_context(RawTerminal(STDIN)).modes
        result = await interact(
            master, stdin=STDIN if options.config.stdin else None, stdout=STDOUT, resizes=resizes, modes=modes
        )
    if result.reason == "hangup":
        return 128 + signal.SIGHUP
    return _early_end(result.output)
