"""The work of ``crungo pull``: several images at once, over connections that they share.

What is unpacked is not synced here. The command is over when the image can be used, and waiting for the disk would make
it as slow as the disk is; a process that stayed behind to wait would be one that nobody has asked for, and that keeps a
file system busy which is to be unmounted. Until it is synced a layer is believed as long as the machine runs, and after
a restart it is unpacked once more from its blob. The verbs for which one waits anyhow, ``system check`` and ``system
prune``, sync.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import anyio

from crungo.cli.messages import report
from crungo.cli.output import emit
from crungo.cli.pull import IMAGES_AT_ONCE, answer
from crungo.errors import CrungoError
from crungo.image.platform import Platform
from crungo.image.reference import Reference
from crungo.image.store import Store
from crungo.registry.groups import single_failure
from crungo.registry.progress import ImageDone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.cli.flags import Context
    from crungo.cli.progress import PullProgress
    from crungo.cli.pull import Prepared, PullOptions
    from crungo.image.unpacker import Unpacker, Unpacking
    from crungo.registry.client import RegistryClient
    from crungo.registry.progress import Progress, ProgressEvent
    from crungo.registry.retry import RetryPolicy
    from crungo.runtime.requests import SpawnerProcess

__all__ = ["execute"]

STDERR = 2


def execute(options: PullOptions, context: Context, prepared: Prepared) -> int:
    """Pull all images but those that are here; what fails is told, and keeps none of the others."""
    return anyio.run(_run, options, context, prepared)


async def _run(options: PullOptions, context: Context, prepared: Prepared) -> int:
    async with AsyncExitStack() as stack:
        progress = None if options.quiet else stack.enter_context(_progress())
        unpacker = _LateUnpacker(context, stack)
        if prepared.spawner is not None:
            await unpacker.start(prepared.spawner)
        work = _Work(options, Store(context.roots), unpacker, progress, prepared, debug=context.debug)
        with single_failure():
            async with anyio.create_task_group() as group:
                if progress is not None:
                    group.start_soon(progress.keep_fresh)
                await work.run()
                group.cancel_scope.cancel()
        # Before the engine ends: the helper's end takes a moment, for which the answer need not wait.
        return work.tell()


def _progress() -> PullProgress:
    from crungo.cli.progress import pull_progress

    return pull_progress(STDERR)


class _LateUnpacker:
    """The unpacker of an engine, which is made, for as long as the stack lasts, when there is a layer to unpack."""

    def __init__(self, context: Context, stack: AsyncExitStack) -> None:
        self._context = context
        self._stack = stack
        self._starting = anyio.Lock(fast_acquire=True)
        self._unpacker: Unpacker | None = None

    async def start(self, spawner: SpawnerProcess | None = None) -> Unpacker:
        """Have the unpacker ready, with a spawner that was started before or with one of its own."""
        from crungo.engine import Engine
        from crungo.runtime.unpacking import SpawnerUnpacker

        roots = self._context.roots
        async with self._starting:
            if self._unpacker is None:
                engine = Engine(root=roots.root, run=roots.run, spawner=spawner)
                await self._stack.enter_async_context(engine)
                self._unpacker = SpawnerUnpacker(engine.spawner)
            return self._unpacker

    @asynccontextmanager
    async def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int, size: int | None = None
    ) -> AsyncIterator[Unpacking]:
        """As of :class:`Unpacker`."""
        unpacker = await self.start()
        async with unpacker.unpack(blob_fd, directory, media_type=media_type, limit=limit, size=size) as unpacking:
            yield unpacking


class _Work:
    def __init__(
        self,
        options: PullOptions,
        store: Store,
        unpacker: Unpacker,
        progress: PullProgress | None,
        prepared: Prepared,
        *,
        debug: bool,
    ) -> None:
        self._options = options
        self._debug = debug
        self._prepared = prepared
        self._store = store
        self._unpacker = unpacker
        self._progress = progress
        self._platform = None if options.platform is None else Platform.parse(options.platform)
        # By name, in the order of the command line.
        here = prepared.here
        self._results: dict[str, str | CrungoError] = {name: here[name] for name in options.images if name in here}
        self._places = anyio.Semaphore(IMAGES_AT_ONCE, fast_acquire=True)

    async def run(self) -> None:
        """Pull what is to be pulled."""
        from crungo.images import credentials_of
        from crungo.registry.client import RegistryClient
        from crungo.registry.retry import RetryPolicy

        options, hosts = self._options, self._prepared.hosts
        retry = RetryPolicy(retries=options.retry, delay=options.retry_delay)
        credentials = credentials_of({}, options.authfile) if options.authfile else None
        async with (
            RegistryClient(hosts=hosts, retry=retry, credentials=credentials, ahead=self._prepared.ahead) as client,
            anyio.create_task_group() as group,
        ):
            for name in options.images:
                if name in self._results:
                    continue
                start = self._every_tag if options.all_tags else self._in_turn
                try:
                    group.start_soon(start, name, Reference.parse(hosts.expand(name)), client, retry)
                except CrungoError as error:
                    self._results[name] = error

    def tell(self) -> int:
        """Print what came of it; returns the exit code."""
        code = 0
        for result in self._results.values():
            if isinstance(result, str):
                emit(result)
            else:
                code = max(code, report(result, verb="pull", debug=self._debug))
        return code

    async def _every_tag(self, name: str, reference: Reference, client: RegistryClient, retry: RetryPolicy) -> None:
        try:
            tags = await client.tags(reference)
        except CrungoError as error:
            self._results[name] = error
            return
        async with anyio.create_task_group() as group:
            for tag in tags:
                await self._places.acquire()  # here and not by a task: a registry may list very many
                self._results[f"{name}:{tag}"] = ""
                group.start_soon(self._one, f"{name}:{tag}", reference.with_tag(tag), client, retry)

    async def _in_turn(self, name: str, reference: Reference, client: RegistryClient, retry: RetryPolicy) -> None:
        self._results.setdefault(name, "")  # its place among the answers
        await self._places.acquire()
        await self._one(name, reference, client, retry)

    async def _one(self, name: str, reference: Reference, client: RegistryClient, retry: RetryPolicy) -> None:
        """Pull one image, and give back the place that was taken for it."""
        try:
            with nullcontext() if self._progress is None else self._progress.follow() as show:
                self._results[name] = await self._pull(reference, client, retry, show)
        except CrungoError as error:
            if not self._debug:  # nobody looks at where it was raised, and of very many that is too much to keep
                error.__cause__ = error.__context__ = error.__traceback__ = None
            self._results[name] = error
        finally:
            self._places.release()

    async def _pull(
        self, reference: Reference, client: RegistryClient, retry: RetryPolicy, show: Progress | None
    ) -> str:
        from crungo.registry.pull import pull

        changed = False

        def take(event: ProgressEvent) -> None:
            nonlocal changed
            changed = changed or (isinstance(event, ImageDone) and event.changed)
            if show is not None:
                show(event)

        image = await pull(
            reference,
            store=self._store,
            client=client,
            unpacker=self._unpacker,
            platform=self._platform,
            policy=self._options.policy,
            progress=take,
            retry=retry,
        )
        return answer(self._options, reference, image, changed=changed)
