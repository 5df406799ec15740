"""Obtaining an image as a policy says, from the store at once where that is enough, else by a pull; and removing one.

The one place where registries and the spawner meet: a pull is given its unpacker here.
"""

from __future__ import annotations

import os
from contextlib import suppress

from crungo.errors import CrungoError, ImageNotKnown, UsageError
from crungo.image.platform import Platform
from crungo.image.reference import Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crungo.config import PullPolicy
    from crungo.image.store import Image, Removal, Store
    from crungo.registry.authfiles import Credentials
    from crungo.registry.progress import Progress
    from crungo.registry.pull import PullLimits
    from crungo.registry.retry import RetryPolicy
    from crungo.runtime.requests import SpawnerProcess

__all__ = ["credentials_of", "local", "obtain", "remove", "stored_name"]


async def obtain(
    name: str,
    *,
    store: Store,
    spawner: SpawnerProcess,
    policy: PullPolicy = "missing",
    platform: str | None = None,
    progress: Progress | None = None,
    limits: PullLimits | None = None,
    retry: RetryPolicy | None = None,
    credentials: Credentials | None = None,
) -> Image:
    """The image of a reference, or of an id that the store knows; errors as for ``registry.pull.pull``."""
    wanted = None if platform is None else Platform.parse(platform)
    found = local(name, store, wanted) if policy in ("missing", "never") else None
    if found is not None:
        return found
    # An HTTP client and what comes with it: only for those who need a registry.
    from anyio import to_thread

    from crungo.registry.client import RegistryClient
    from crungo.registry.hostfiles import load_hosts
    from crungo.registry.pull import pull
    from crungo.runtime.unpacking import SpawnerUnpacker

    hosts = await to_thread.run_sync(load_hosts)
    async with RegistryClient(hosts=hosts, retry=retry, credentials=credentials) as client:
        return await pull(
            Reference.parse(hosts.expand(name)),
            store=store,
            client=client,
            unpacker=SpawnerUnpacker(spawner),
            platform=wanted,
            policy=policy,
            progress=progress,
            limits=limits,
            retry=retry,
        )


def credentials_of(given: Mapping[str, tuple[str, str]], authfile: str | os.PathLike[str] | None) -> Credentials:
    """Credentials from a program: ``given`` maps ``host[:port][/repository]`` to user name and password.

    What is not there is looked up in ``authfile`` (the format of docker's ``config.json``), or without one in the files
    of docker and podman.

    Raises:
        UsageError: ``authfile`` is not there.
    """
    if authfile is not None and not os.path.exists(authfile):
        raise UsageError(f"authfile {os.fspath(authfile)}: no such file")
    from crungo.registry.authfiles import Credentials
    from crungo.registry.credentials import Credential, lookup_keys

    class Given(Credentials):
        async def find(self, registry: str, repository: str = "") -> Credential | None:
            for key in lookup_keys(registry, repository):
                if key in given:
                    username, password = given[key]
                    return Credential(username=username, password=password)
            return await super().find(registry, repository)

    return Given(None if authfile is None else (os.path.abspath(authfile),))


def remove(store: Store, what: str, *, force: bool, own: Sequence[str]) -> Removal:
    """Remove an image; for a worker thread. ``own`` are the ids of our containers that use it.

    Raises:
        ImageNotKnown: there is no such image.
        ImageInUse: a container of ours, or another process, uses it.
    """
    from crungo.image.leases import leased

    def users(image: Image) -> Sequence[str]:
        if own:
            return [identifier[:12] for identifier in own]
        return ["another process"] if image.digest in leased(store.layout) else []  # called under the store's lock

    return store.remove(what, force=force, in_use=users)


def stored_name(name: str, store: Store) -> str:
    """What the store knows an image by: the name as it is or, where it knows none, what that may be short for.

    Raises:
        ConfigurationError: registries.conf, which says so, is malformed.
        StoreError: as of ``Store.image``.
    """
    try:
        store.record(name)
    except ImageNotKnown:
        from crungo.registry.hostfiles import load_hosts

        for candidate in load_hosts().candidates(name):
            with suppress(ImageNotKnown):
                store.record(candidate)
                return candidate
    return name


def local(name: str, store: Store, platform: Platform | None) -> Image | None:
    """The image if the store has it, for this platform, with every layer trustworthy."""
    try:
        try:
            image = store.image(name)
        except ImageNotKnown:
            image = store.image(stored_name(name, store))
    except CrungoError:
        return None
    if platform is not None and not image.config.suits(platform):
        return None
    return None if store.untrusted(image) else image
