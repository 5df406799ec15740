"""The engine: one store, one spawner, and the containers that are made with them.

    async with crungo.Engine() as engine:
        result = await engine.run("alpine", ["echo", "hello"])

Several engines may live in one process; each is used on the loop that entered it. Invariant: leaving an engine ends
whatever it still owns, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
from anyio import to_thread

from crungo.containers import Container
from crungo.errors import HostError, ImageNotKnown, LibcrunError, NameInUse, UsageError
from crungo.loopguard import LoopGuard
from crungo.openfiles import naming_the_limit
from crungo.paths import Roots
from crungo.process import Completed, Process, run_to_end
from crungo.runtime.requests import SpawnerProcess, require_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Unpack

    from crungo.config import ContainerConfig, ExecConfig, PullPolicy
    from crungo.creation import Creation
    from crungo.fields import ContainerFields
    from crungo.image.leases import Lease
    from crungo.image.store import Image, Removal, Store
    from crungo.pool import Pool
    from crungo.registry.progress import Progress
    from crungo.registry.pull import PullLimits
    from crungo.registry.retry import RetryPolicy
    from crungo.runtime.host import HostFacts
    from crungo.runtime.template import Templates

__all__ = ["Engine"]

START_LIMIT = 16
"""Creations at a time: each keeps a worker thread waiting, and more than a few per core only wait for each other."""

NAME_TRIES = 20
CLOCK_TICK = 50_000_000


class Engine:
    """A store, a spawner, and their limits; an async context manager."""

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        run: str | os.PathLike[str] | None = None,
        start_limit: int = START_LIMIT,
        progress: Progress | None = None,
        credentials: Mapping[str, tuple[str, str]] | None = None,
        authfile: str | os.PathLike[str] | None = None,
        pull_limits: PullLimits | None = None,
        retry: RetryPolicy | None = None,
        spawner: SpawnerProcess | None = None,
    ) -> None:
        """``root`` and ``run`` override the places of the store (see :class:`crungo.paths.Roots`).

        ``start_limit`` is how many containers are created at a time. ``progress`` is called with the events of pulls
        that a missing image causes. ``credentials`` maps registries (``host[:port]``, perhaps with a repository behind
        it) to user name and password; others are looked up in ``authfile``, else where docker and podman file theirs.
        ``pull_limits`` and ``retry`` are those of every pull. ``spawner`` hands over one that was started before.

        Raises:
            UsageError: ``start_limit`` is less than 1.
        """
        if start_limit < 1:
            raise UsageError(f"engine: a start_limit of at least 1 is expected, not {start_limit}")
        self.roots = Roots.default(root=root, run=run)
        self._start_limit = start_limit
        self._progress = progress
        self._credentials = credentials or {}
        self._authfile = authfile
        self._pull_limits = pull_limits
        self._retry = retry
        self._spawner = spawner
        self._store: Store | None = None
        self._host: HostFacts | None = None
        self._templates: Templates | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        # Whoever waits to be created has been given nothing yet: a thousand requests at once would otherwise be
        # prepared in one turn of the loop, and take seven thousand descriptors.
        self._turns = anyio.Semaphore(start_limit, fast_acquire=True)
        self._guard: LoopGuard | None = None
        self._containers: WeakSet[Container] = WeakSet()
        self._known: dict[tuple[str, str | None], tuple[int, Image]] = {}  # and when the names of images last changed
        self._leases: dict[str, Lease] = {}  # by the digest of the image: what we use, no other process removes

    async def __aenter__(self) -> Engine:
        require_root()
        self._limiter = anyio.CapacityLimiter(self._start_limit)
        if self._spawner is None:
            with naming_the_limit("start the helper process"):
                self._spawner = await to_thread.run_sync(SpawnerProcess.start, self.roots)
        self._guard = LoopGuard(self._abandon)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        spawner, self._spawner = self._spawner, None
        if spawner is None:
            return
        if self._guard is not None:
            self._guard.disarm()
        # First: until the spawner is told that this end is in order, it would remove what a killed process leaves.
        self._close_leases()
        with anyio.CancelScope(shield=True):
            await self._end(spawner)

    def _abandon(self) -> None:
        """The loop is closed: nothing can be awaited any more."""
        self._close_leases()
        if self._spawner is not None:
            self._spawner.end_requests()

    def _close_leases(self) -> None:
        for lease in self._leases.values():
            lease.close()
        self._leases.clear()

    async def _end(self, spawner: SpawnerProcess) -> None:
        spawner.end_requests()
        await anyio.wait_readable(spawner.pidfd)
        if not spawner.reap():
            # Killed: the first thing that a successor does is to remove what it left.
            successor = await to_thread.run_sync(SpawnerProcess.start, self.roots)
            successor.end_requests()
            await anyio.wait_readable(successor.pidfd)
            successor.reap()

    @property
    def spawner(self) -> SpawnerProcess:
        """The helper process; raises UsageError outside the engine's block."""
        if self._spawner is None:
            raise UsageError("engine: used outside its `async with` block")
        return self._spawner

    @property
    def store(self) -> Store:
        """The images on this machine."""
        if self._store is None:
            from crungo.image.store import Store

            self._store = Store(self.roots)
        return self._store

    async def run(
        self,
        image: str | ContainerConfig,
        command: Sequence[str] | None = None,
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's word
        timeout: float | str | None = None,
        check: bool = False,
        **fields: Unpack[ContainerFields],
    ) -> Completed:
        """Run a container to its end and capture what it writes.

        ``image`` is a reference, or a whole configuration that ``fields`` change. ``input`` is given to the program's
        standard input, which is empty without it. With ``timeout`` (seconds, or a text such as ``1m30s``), which
        includes pulling a missing image, it is killed when that has passed.

        Raises:
            TimeoutError: ``timeout`` has passed; nothing is left.
            CommandFailed: the exit code is not 0, and ``check`` is given.
            CommandNotFound, CommandNotExecutable: its program cannot be started.
            UsageError: a value is malformed; before anything is pulled or made.
            NameInUse: another container has the name.
            RegistryError, ImageError: the image is missing and cannot be pulled.
        """
        from crungo.fields import check_input, configure, duration

        if input is not None:
            fields["stdin"] = True
        config = configure(image, command, fields)
        check_input(input, tty=config.tty)
        seconds = None if timeout is None else duration(timeout, "timeout")
        return await run_to_end(self.container(config), input=input, timeout=seconds, check=check)

    @asynccontextmanager
    async def container(
        self, image: str | ContainerConfig, command: Sequence[str] | None = None, **fields: Unpack[ContainerFields]
    ) -> AsyncIterator[Container]:
        """A running container, for as long as the block lasts; arguments and errors as for :meth:`run`.

        Leaving the block, in whatever way, ends it with all that runs inside, and waits until nothing of it is left.
        """
        from crungo.fields import configure

        container = await self.create(configure(image, command, fields))
        try:
            yield container
        finally:
            await container.aclose()

    @asynccontextmanager
    async def pool(
        self, image: str | ContainerConfig, size: int, /, **fields: Unpack[ContainerFields]
    ) -> AsyncIterator[Pool]:
        """``size`` containers that are ready for their command, for as long as the block lasts; see :class:`Pool`."""
        from crungo.fields import configure
        from crungo.pool import Pool

        async with Pool(self, configure(image, None, fields), size) as pool:
            yield pool

    async def create(self, config: ContainerConfig, *, log: int = -1, command: int = -1) -> Container:
        """Create and start a container; the caller must ``aclose`` it.

        ``log`` is a descriptor for libcrun's log. ``command`` is one that brings the command later, for a container
        that shall only be created (see :mod:`crungo.pool`).
        """
        from crungo.creation import Creation
        from crungo.runtime.host import HostFacts
        from crungo.runtime.template import Templates

        if self._host is None:
            self._host = HostFacts.read()
        if self._templates is None:
            self._templates = Templates(self.roots.root, self._host)
        self._templates.check(config)
        image = None if config.rootfs is not None else await self.image(config)
        for _ in range(NAME_TRIES):
            try:
                async with self._turns:
                    with naming_the_limit("create container"):
                        template = self._templates.get(config, image)
                        creation = Creation(self.spawner, config, image, template, self._host, log=log, command=command)
                        return await self._create(creation, created=command >= 0)
            except NameInUse:
                if config.name is not None:
                    raise
        raise HostError("create container: no free name found")

    async def adopt(self, creation: Creation) -> Container:
        """The container of a creation that was sent to this engine's spawner; as :meth:`create` otherwise."""
        self._host = creation.host
        if creation.lease is not None and creation.traits.image is not None:
            self._leases[creation.traits.image] = creation.lease
            creation.lease = None
        try:
            return await self._create(creation)
        except NameInUse:
            if creation.config.name is not None:
                raise
            return await self.create(creation.config)

    async def image(self, config: ContainerConfig) -> Image:
        """The image of a configuration, pulled as its policy says, and kept until the engine is left."""
        key = (config.image, config.platform)
        names = self._names_changed()
        if config.pull in ("missing", "never") and self._known.get(key, (0, None))[0] == names != 0:
            return self._known[key][1]
        while True:
            image = await self.pull(config.image, policy=config.pull, platform=config.platform, progress=self._progress)
            with suppress(ImageNotKnown):  # another process has removed it since
                await self._hold(config.image, image)
                break
        # A second change within a tick of the file system's clock would look like the first.
        if names == self._names_changed() and time.time_ns() - names > CLOCK_TICK:
            self._known[key] = (names, image)
        return image

    async def _hold(self, name: str, image: Image) -> None:
        """Let no other process remove an image as long as this engine is entered."""
        if image.digest in self._leases:
            return
        with naming_the_limit(f"hold {name}"):
            lease = await to_thread.run_sync(self.store.hold, image)
        if self._leases.setdefault(image.digest, lease) is not lease:
            lease.close()  # another task was faster

    def _names_changed(self) -> int:
        """When a name of an image last changed, in nanoseconds of the file system's clock; 0 where there are none."""
        try:
            return os.stat(self.store.layout.refs).st_mtime_ns
        except FileNotFoundError:
            return 0

    async def pull(
        self,
        reference: str,
        *,
        policy: PullPolicy = "always",
        platform: str | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Have an image in the store, complete, verified and unpacked; returns it.

        ``policy`` is that of ``--pull``; ``always`` costs one request when the store has what the registry has.
        ``platform`` is ``os/architecture[/variant]``. ``progress`` is called on the event loop with the events of
        :mod:`crungo.registry.progress`. Cancelling keeps what is complete, for the next pull to go on with.

        Raises:
            InvalidReference, UsageError: the reference, the policy or the platform is malformed, or the engine's
                ``authfile`` is not there.
            ImageNotKnown: the policy is ``never``, and the image is not here.
            ImageNotFound, AuthenticationError, RegistryError: the registry has no such image, or refused, or failed.
            ImageError: the image is malformed, not what its digests say, or not for the platform.
            StoreError: the store is full or damaged.
        """
        from crungo.images import credentials_of, obtain
        from crungo.parsing.host import parse_platform, parse_pull

        parse_pull(policy, flag="policy")
        if platform is not None:
            platform = parse_platform(platform, flag="platform")
        given = bool(self._credentials or self._authfile)
        return await obtain(
            reference,
            store=self.store,
            spawner=self.spawner,
            policy=policy,
            platform=platform,
            progress=progress,
            limits=self._pull_limits,
            retry=self._retry,
            credentials=credentials_of(self._credentials, self._authfile) if given else None,
        )

    async def images(self) -> list[Image]:
        """The images in the store, newest first."""
        with naming_the_limit("list images"):
            return await to_thread.run_sync(self.store.images)

    async def remove(self, image: str, *, force: bool = False) -> Removal:
        """Remove a name and, with its last name, the image; an id or its beginning means all its names.

        With ``force``, an image that is in use loses its names, and its content goes with the next clean-up.

        Raises:
            ImageNotKnown: there is no such image.
            ImageInUse: a container or another engine uses it.
        """
        from crungo.images import remove, stored_name

        with naming_the_limit(f"remove {image}"):
            image = await to_thread.run_sync(stored_name, image, self.store)
            digest = (await to_thread.run_sync(self.store.image, image)).digest
        users = [container.id for container in self._containers if container.traits.image == digest and container.alive]
        if not users and (lease := self._leases.pop(digest, None)) is not None:
            lease.close()
            self._known.clear()  # what is used again is held again
        with naming_the_limit(f"remove {image}"):
            return await to_thread.run_sync(partial(remove, self.store, image, force=force, own=users))

    async def _create(self, creation: Creation, *, created: bool = False) -> Container:
        """The container of a creation, started, or only ``created``."""
        assert self._limiter is not None
        container = Container(
            creation.identifier,
            creation.channel,
            creation.stdio,
            self._limiter,
            creation.traits.process["args"][0],
            execute=partial(self._execute, creation),
            traits=creation.traits,
        )
        container._hear(creation.heard)
        self._containers.add(container)
        try:
            await container._launch(creation.request, until="created" if created else "started")
        except LibcrunError as error:
            if (better := creation.explain(error)) is not None:
                raise better from error
            raise
        return container

    async def _execute(self, creation: Creation, config: ExecConfig) -> Process:
        """Start a further process in a container."""
        from crungo.runtime.spec import build_exec
        from crungo.stdio import standard_streams

        assert self._limiter is not None
        process = build_exec(config, creation.traits.process, host=creation.host)
        message: dict[str, Any] = {
            "op": "exec",
            "id": creation.identifier,
            "spec": b'{"ociVersion":"1.0.2","process":' + json.dumps(process).encode() + b"}",
            "user": creation.user if config.user is None else config.user,
            "groups": [],
            "tty": config.tty,
            "debug": False,
        }
        async with self._turns:
            with naming_the_limit("exec"):
                ours, theirs = standard_streams(config)
                try:
                    channel, request = self.spawner.request(message, [theirs[0]], given=theirs)
                except BaseException:
                    ours.close()
                    raise
                started = Process(channel, ours, self._limiter, process["args"][0])
                await started._launch(request)
                return started
