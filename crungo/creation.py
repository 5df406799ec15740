"""A container on its way: all of its making that needs no event loop.

An engine makes each container by one of these. The command line makes its own before it has imported an event loop,
which takes longer than a container does, and hands it to its engine with the container under way.
"""

from __future__ import annotations

import os
import select
import signal

from crungo.errors import ImageNotKnown, UsageError
from crungo.records import Record
from crungo.runtime.check import check_config
from crungo.runtime.host import HostFacts
from crungo.runtime.names import random_id, random_name
from crungo.runtime.template import Template
from crungo.stdio import standard_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from crungo.config import ContainerConfig
    from crungo.errors import CrungoError, LibcrunError
    from crungo.image.leases import Lease
    from crungo.image.store import Image
    from crungo.paths import Roots
    from crungo.runtime.requests import SpawnerProcess

__all__ = ["Creation", "Traits", "begin"]


class Traits(Record):
    """What a container needs to know of itself: its name, its labels with those of its image, the digest of that, how
    it is stopped (a signal, and seconds until it is killed), whether the host can limit memory plus swap, and the OCI
    process object that it was made with."""

    name: str
    labels: Mapping[str, str]
    image: str | None
    stop_signal: int
    stop_timeout: float
    swap_limit: bool
    process: Mapping[str, Any]


class Creation:
    """One container's request, our ends of its channel and streams, and what was heard of it so far.

    Whoever makes one closes it, also where an engine took it over: that closes what was left.

    ``log`` is a descriptor for libcrun's log. ``command`` is one that brings the command later, for a container that
    shall only be created (see :mod:`crungo.pool`). Both stay the caller's, and open until the request is sent.
    ``lease`` keeps the image.
    """

    lease: Lease | None = None

    def __init__(
        self,
        spawner: SpawnerProcess,
        config: ContainerConfig,
        image: Image | None,
        template: Template,
        host: HostFacts,
        *,
        log: int = -1,
        command: int = -1,
    ) -> None:
        self.config = config
        self.image = image
        self.host = host
        self.identifier = random_id()
        filled = template.fill(self.identifier)
        self.user = config.user if config.user is not None else image.config.user if image else None
        self.traits = Traits(
            name=config.name or random_name(),
            labels={**(image.config.labels if image is not None else {}), **config.labels},
            image=None if image is None else image.digest,
            stop_signal=config.stop_signal or _stop_signal(image),
            stop_timeout=config.stop_timeout,
            swap_limit=host.swap_limit,
            process=filled.process,
        )
        message: dict[str, Any] = {
            "op": "create",
            "id": self.identifier,
            "name": self.traits.name,
            "layers": None if image is None else list(image.layers),
            "rootfs": config.rootfs,
            "spec": filled.spec,
            "user": self.user,
            "groups": list(config.group_add),
            "files": filled.files,
            "tty": config.tty,
            "debug": log >= 0,
            "await_command": command >= 0,
        }
        self.stdio, theirs = standard_streams(config)
        try:
            lent = [command if command >= 0 else theirs[0], *([log] if log >= 0 else [])]
            self.channel, self.request = spawner.request(message, lent, given=theirs)
        except BaseException:
            self.stdio.close()
            raise
        self.heard: list[tuple[dict[str, Any], list[int]]] = []

    def explain(self, error: LibcrunError) -> CrungoError | None:
        """The error to raise in place of libcrun's refusal, where it can be told what is wrong with what was asked for.

        Else the refusal gets a hint where there are mounts that nobody has asked for by name.
        """
        from crungo.runtime.refusals import explain

        found = explain(error, self.config, identifier=self.identifier)
        if found is None and self.config.read_only and self.image is not None and self.image.config.volumes:
            volumes = ", ".join(self.image.config.volumes)
            error.hint = (
                f"a read-only root keeps the image's volumes writable ({volumes}), if they are directories of its own"
            )
        return found

    def event(self, name: str) -> dict[str, Any] | None:
        """The event of this name, where it was heard."""
        return next((message for message, _ in self.heard if message["event"] == name), None)

    def follow(self, other: int) -> bool:
        """Listen until the container is gone: True; or until another descriptor is readable: False.

        For a thread that has nothing else to do. Raises SpawnerDied when there is nobody to listen to.
        """
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(other, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self.channel.fileno() in ready:
                self.heard.append(self.channel.receive())
                if self.heard[-1][0]["event"] == "gone":
                    return True
            elif other in ready:
                return False

    def close(self) -> None:
        """Give up what was not taken over. A container that was asked for ends."""
        self.request.close()
        self.channel.close()
        self.stdio.close()
        for _, fds in self.heard:
            for fd in fds:
                os.close(fd)
        self.heard.clear()
        if self.lease is not None:
            self.lease.close()


def begin(config: ContainerConfig, roots: Roots, spawner: SpawnerProcess) -> Creation | None:
    """A creation that is ready to be sent, where that is possible at once: its image is here, or it needs none.

    Errors are those of :meth:`crungo.Engine.create`.
    """
    host = HostFacts.read()
    check_config(config, host)
    if config.rootfs is not None:
        return Creation(spawner, config, None, Template.make(config, None, root=roots.root, host=host), host)
    if config.pull not in ("missing", "never"):
        return None
    from crungo.image.platform import Platform
    from crungo.image.store import Store
    from crungo.images import local

    store = Store(roots)
    image = local(config.image, store, None if config.platform is None else Platform.parse(config.platform))
    if image is None:
        return None
    try:
        lease = store.hold(image)
    except ImageNotKnown:
        return None  # removed in this moment: the engine sees what is to be done
    try:
        template = Template.make(config, image.config, root=roots.root, host=host)
        creation = Creation(spawner, config, image, template, host)
    except BaseException:
        lease.close()
        raise
    creation.lease = lease
    return creation


def _stop_signal(image: Image | None) -> int:
    """The signal that the image asks to be stopped with, SIGTERM where it names none that there is."""
    if image is not None and image.config.stop_signal:
        from crungo.parsing.process import parse_signal

        try:
            return parse_signal(image.config.stop_signal)
        except UsageError:
            pass  # docker does the same: an image is not refused for it
    return int(signal.SIGTERM)
