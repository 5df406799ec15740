"""The engine: one store, one spawner, and the containers that are made with them.

    async with crungo.Engine() as engine:
        result = await engine.run("alpine", ["echo", "hello"])

Several engines may live in one process; each is used on the loop that entered it. Invariant: leaving an engine ends
whatever it still owns, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from crungo.config import ContainerConfig, ExecConfig
from crungo.containers import Container
from crungo.errors import HostError, NameInUse, UsageError
from crungo.paths import Roots
from crungo.process import Completed, Process, Stdio, run_to_end
from crungo.runtime.cgroups import path_of
from crungo.runtime.requests import SpawnerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from crungo.image.leases import Lease
    from crungo.image.store import Image, Store
    from crungo.runtime.host import HostFacts

__all__ = ["Engine"]

START_LIMIT = 16
"""Creations at a time: each keeps a worker thread waiting, and more than a few per core only wait for each other."""

NAME_TRIES = 20


class Engine:
    """A store, a spawner, and their limits; an async context manager."""

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        run: str | os.PathLike[str] | None = None,
        start_limit: int = START_LIMIT,
        progress: Callable[[Any], None] | None = None,
        spawner: SpawnerProcess | None = None,
    ) -> None:
        """``root`` and ``run`` override the places of the store (see :class:`crungo.paths.Roots`).

        ``start_limit`` is how many containers are created at a time. ``progress`` is called with the events of pulls
        that a missing image causes. ``spawner`` hands over one that was started before.
        """
        self.roots = Roots.default(root=root, run=run)
        self._start_limit = start_limit
        self._progress = progress
        self._spawner = spawner
        self._store: Store | None = None
        self._host: HostFacts | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        self._leases: dict[str, Lease] = {}  # by image id: what we use, no other process removes

    async def __aenter__(self) -> Engine:
        if os.geteuid() != 0:
            raise HostError("crungo makes containers as root only", hint="run it with sudo")
        self._limiter = anyio.CapacityLimiter(self._start_limit)
        if self._spawner is None:
            self._spawner = await to_thread.run_sync(SpawnerProcess.start, self.roots)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        spawner, self._spawner = self._spawner, None
        if spawner is None:
            return
        with anyio.CancelScope(shield=True):
            spawner.end_requests()
            await anyio.wait_readable(spawner.pidfd)
            spawner.reap()
        for lease in self._leases.values():
            lease.close()
        self._leases.clear()

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
        timeout: float | None = None,
        check: bool = False,
        **fields: Any,
    ) -> Completed:
        """Run a container to its end and capture what it writes.

        ``input`` is given to the program's standard input; ``timeout`` (seconds) raises TimeoutError and kills it;
        ``check`` raises CommandFailed when the exit code is not 0. ``fields`` are those of ContainerConfig.
        """
        config = _config(image, command, stdin=input is not None, **fields)
        return await run_to_end(self.container(config), input=input, timeout=timeout, check=check)

    @asynccontextmanager
    async def container(
        self, image: str | ContainerConfig, command: Sequence[str] | None = None, **fields: Any
    ) -> AsyncIterator[Container]:
        """A running container, for as long as the block lasts.

        Raises CommandNotFound or CommandNotExecutable when its program cannot be started.
        """
        container = await self.create(_config(image, command, **fields))
        try:
            yield container
        finally:
            await container.aclose()

    async def create(self, config: ContainerConfig, *, log: int = -1) -> Container:
        """Create and start a container; the caller must ``aclose`` it. ``log`` is a descriptor for libcrun's log."""
        from crungo.runtime.check import check_config
        from crungo.runtime.host import HostFacts
        from crungo.runtime.names import random_name

        if self._host is None:
            self._host = HostFacts.read()
        check_config(config, self._host)
        image = None if config.rootfs is not None else await self.image(config)
        for _ in range(NAME_TRIES):
            try:
                return await self._create(config, image, config.name or random_name(), self._host, log)
            except NameInUse:
                if config.name is not None:
                    raise
        raise HostError("create container: no free name found")

    async def image(self, config: ContainerConfig) -> Image:
        """The image of a configuration, pulled as its policy says."""
        from crungo.images import obtain

        image = await obtain(
            config.image,
            store=self.store,
            spawner=self.spawner,
            policy=config.pull,
            platform=config.platform,
            progress=self._progress,
        )
        if image.id not in self._leases:
            self._leases[image.id] = await to_thread.run_sync(self.store.hold, image)
        return image

    async def _create(
        self, config: ContainerConfig, image: Image | None, name: str, host: HostFacts, log: int
    ) -> Container:
        from crungo.runtime.etc import etc_files
        from crungo.runtime.names import random_id
        from crungo.runtime.spec import ContainerPlace, build_spec

        identifier = random_id()
        directory = f"{self.roots.root}/containers/{identifier}"
        place = ContainerPlace(
            id=identifier, rootfs=f"{directory}/rootfs", directory=directory, cgroups_path=path_of(identifier)
        )
        spec = build_spec(config, image.config if image else None, place=place, host=host)
        files = etc_files(config, hostname=spec["hostname"], host=host)
        user = config.user if config.user is not None else image.config.user if image else None
        message: dict[str, Any] = {
            "op": "create",
            "id": identifier,
            "name": name,
            "layers": None if image is None else list(image.layers),
            "rootfs": config.rootfs,
            "spec": json.dumps(spec).encode(),
            "user": user,
            "groups": list(config.group_add),
            "files": {file: text.encode() for file, text in files.items()},
            "tty": config.tty,
            "debug": log >= 0,
            "start": True,
        }
        assert self._limiter is not None
        with _stdio(config) as (ours, theirs):
            channel, request = self.spawner.request(message, [*theirs, *([log] if log >= 0 else [])])
            container = Container(
                identifier,
                channel,
                ours,
                self._limiter,
                spec["process"]["args"][0],
                execute=partial(self._execute, identifier, user, spec["process"]),
            )
            await container._launch(request)
            return container

    async def _execute(self, identifier: str, user: str | None, base: dict[str, Any], config: ExecConfig) -> Process:
        """Start a further process in a container that was made with ``user`` and the process object ``base``."""
        from crungo.runtime.spec import build_exec

        assert self._limiter is not None
        assert self._host is not None
        process = build_exec(config, base, host=self._host)
        message: dict[str, Any] = {
            "op": "exec",
            "id": identifier,
            "process": json.dumps(process).encode(),
            "user": user if config.user is None else config.user,
            "groups": [],
            "tty": config.tty,
            "debug": False,
        }
        with _stdio(config) as (ours, theirs):
            channel, request = self.spawner.request(message, theirs)
            started = Process(channel, ours, self._limiter, process["args"][0])
            await started._launch(request)
            return started


def _config(image: str | ContainerConfig, command: Sequence[str] | None = None, **fields: Any) -> ContainerConfig:
    """The configuration that the arguments of a call name: one whole, or an image and fields."""
    from dataclasses import replace

    if command is not None:
        if isinstance(command, (str, bytes)):
            raise UsageError(f"command: a list of arguments is expected, not {command!r}")
        fields["command"] = tuple(command)
    if isinstance(image, ContainerConfig):
        return replace(image, **{key: value for key, value in fields.items() if value is not False})
    return ContainerConfig(image=image, **fields)


@contextmanager
def _stdio(config: ContainerConfig | ExecConfig) -> Iterator[tuple[Stdio, list[int]]]:
    """Our ends and the container's of its standard streams; the container's are closed on leaving."""
    ours = Stdio()
    theirs: list[int] = []
    try:
        if config.tty or not config.stdin:
            theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        else:
            reader, ours.stdin = os.pipe2(os.O_CLOEXEC)
            theirs.append(reader)
        for name in ("stdout", "stderr"):
            if config.tty:
                theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            else:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                setattr(ours, name, reader)
                theirs.append(writer)
        yield ours, theirs
    except BaseException:
        ours.close()
        raise
    finally:
        for fd in theirs:
            os.close(fd)
