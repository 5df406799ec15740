"""Obtaining an image as a policy says: from the store at once where that is enough, else by a pull.

The one place where registries and the spawner meet: a pull is given its unpacker here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread

from crungo.errors import CrungoError
from crungo.image.platform import Platform
from crungo.image.reference import Reference

if TYPE_CHECKING:
    from crungo.config import PullPolicy
    from crungo.image.store import Image, Store
    from crungo.registry.progress import Progress
    from crungo.registry.pull import PullLimits
    from crungo.registry.retry import RetryPolicy
    from crungo.runtime.requests import SpawnerProcess

__all__ = ["obtain"]


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
) -> Image:
    """The image of a reference, or of an id that the store knows; errors as for ``registry.pull.pull``."""
    wanted = None if platform is None else Platform.parse(platform)
    local = _local(name, store, wanted) if policy in ("missing", "never") else None
    if local is not None:
        return local
    # httpx and what comes with it: only for those who need a registry.
    from crungo.registry.client import RegistryClient
    from crungo.registry.hostfiles import load_hosts
    from crungo.registry.pull import pull
    from crungo.runtime.unpacking import SpawnerUnpacker

    hosts = await to_thread.run_sync(load_hosts)
    async with RegistryClient(hosts=hosts, retry=retry) as client:
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


def _local(name: str, store: Store, platform: Platform | None) -> Image | None:
    """The image if the store has it, for this platform, with every layer trustworthy."""
    try:
        image = store.image(name)
    except CrungoError:
        return None
    if platform is not None and platform.accepts(image.config.platform) is None:
        return None
    return None if store.untrusted(image) else image
