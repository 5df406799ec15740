"""Pulling an image: what is missing of it, all layers at once, each unpacked while it comes.

    manifest ─┬─► configuration ───────────────────────────────────────────────────┐ diff ids
              └─► for each layer: download ─► file ─► unpacker (another process) ─► compare ─► rename

Invariant: an image gets its name in the store last, when all of it is there and verified. Until then a lease keeps what
is there already; whatever ends a pull early leaves files that nothing names, which the next pull goes on with.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from crungo.errors import CrungoError, ImageError, ImageNotKnown, RegistryError
from crungo.image.platform import Platform
from crungo.image.refs import RefRecord, stored_name
from crungo.openfiles import naming_the_limit
from crungo.records import Record
from crungo.registry.groups import single_failure
from crungo.registry.progress import ImageDone, ImageResolved, ImageRetry, Tracker
from crungo.registry.resolve import Resolved, fetch_config, resolve
from crungo.registry.retry import RetryPolicy

if TYPE_CHECKING:
    from crungo.config import PullPolicy
    from crungo.image.imageconfig import ImageConfig
    from crungo.image.manifest import Descriptor, Manifest
    from crungo.image.reference import Reference
    from crungo.image.store import Image, Store
    from crungo.image.unpacker import Unpacker
    from crungo.registry.client import RegistryClient
    from crungo.registry.progress import Progress

__all__ = ["PullLimits", "pull"]


class PullLimits(Record):
    """How much at once, and how large at most.

    ``layers`` are downloaded and unpacked at once over ``connections``; ``layer_size`` is that of one layer's tar, in
    bytes.
    """

    layers: int = 6
    connections: int = 8
    layer_size: int = 64 << 30


async def pull(
    reference: Reference,
    *,
    store: Store,
    client: RegistryClient,
    unpacker: Unpacker,
    platform: Platform | None = None,
    policy: PullPolicy = "always",
    progress: Progress | None = None,
    limits: PullLimits | None = None,
    retry: RetryPolicy | None = None,
) -> Image:
    """Make an image be in the store, complete, verified and unpacked.

    ``policy``: ``always`` asks the registry what the name stands for now, which costs one HEAD when that is here;
    ``newer`` does, and takes what is here when the registry cannot be asked; ``missing`` asks only when the name is not
    here; ``never`` does not ask. ``platform`` is this machine's unless given.

    Raises:
        ImageNotKnown: the policy is ``never``, and the image is not here.
        ImageNotFound, AuthenticationError, RegistryError: the registry has no such image, or refused, or failed.
        ImageError, DigestMismatch, LayerError: the image is malformed, or not what its digests say.
        StoreError: the store is full or damaged.
        HostError: no more files can be opened.
    """
    with store.layout.refusals(), naming_the_limit(f"pull {reference.familiar}"):
        return await _Pull(
            reference=reference,
            store=store,
            client=client,
            unpacker=unpacker,
            platform=platform or Platform.host(),
            explicit=platform is not None,
            policy=policy,
            progress=progress,
            limits=limits or PullLimits(),
            retry=retry or RetryPolicy(),
        ).run()


class _Pull(Record):
    reference: Reference
    store: Store
    client: RegistryClient
    unpacker: Unpacker
    platform: Platform
    explicit: bool
    policy: PullPolicy
    progress: Progress | None
    limits: PullLimits
    retry: RetryPolicy

    async def run(self) -> Image:
        local = self._local()
        if local is not None:
            mended = await self._use_local(local)
            if mended is not None:
                self._tell_done(mended, changed=False)
                return mended
        elif self.policy == "never":
            wanted = f" for {self.platform}" if self.explicit else ""
            raise ImageNotKnown(f"No such image: {self.reference.familiar}{wanted}")
        image = await self._fetch()
        self._tell_done(image, changed=True)
        return image

    def _local(self) -> Image | None:
        """The image as it is in the store; None where it is not, is for another platform, or was damaged."""
        try:
            image = self.store.image(self.reference)
        except ImageNotKnown:
            return None
        except CrungoError:
            if self.policy == "never":
                raise
            return None
        # Of a name alone, what is here is meant, unless the registry is asked: that gives what is for this machine.
        particular = self.explicit or self.policy in ("always", "newer")
        return image if not particular or image.config.suits(self.platform) else None

    async def _use_local(self, image: Image) -> Image | None:
        """The image that is here, if the policy is content with it, with its layers made good; else None."""
        if self.policy in ("always", "newer") and not await self._is_current(image):
            return None
        # A repair takes damaged blobs away. Their layers can be used without: only who asks anyhow fetches them.
        complete = self.policy != "always" or self.store.has_blobs(image)
        if complete and not self.store.untrusted(image):
            return image
        client = None if self.policy == "never" else self.client
        with await anyio.to_thread.run_sync(self.store.keep, image):
            await self._layers(image.manifest, _DiffIds(image.manifest, image.config), client)
        try:
            return self.store.image(self.reference)
        except ImageNotKnown:
            if self.policy == "never":
                raise
            return None  # its name has been taken away meanwhile

    async def _is_current(self, image: Image) -> bool:
        """Whether the registry still means this image by the name."""
        if self.reference.digest is not None:
            return True  # content that a digest names does not change
        try:
            head = await self.client.head_manifest(self.reference, tell=self._tell_again)
            if head is None:  # the registry cannot be asked so
                manifest = await self.client.get_manifest(self.reference, tell=self._tell_again)
                return manifest.digest == image.target
        except RegistryError:
            if self.policy == "newer":
                return True
            raise
        return head.digest == image.target

    async def _fetch(self) -> Image:
        with single_failure():
            async with anyio.create_task_group() as group:
                group.start_soon(partial(self.client.prepare_blobs, self.reference, at_once=self.limits.layers))
                resolved = await resolve(self.client, self.reference, self.platform, tell=self._tell_again)
        if self.progress is not None:
            self.progress(
                ImageResolved(
                    reference=self.reference,
                    digest=resolved.manifest_descriptor.digest,
                    layers=tuple({layer.digest: layer for layer in resolved.manifest.layers}.values()),
                )
            )
        lease = await anyio.to_thread.run_sync(self.store.lease, resolved.digests)
        try:
            await self._contents(resolved)
            return await anyio.to_thread.run_sync(self._commit, resolved)
        except ImageError:
            # A bad image: nothing of it is of use to a later pull. What broke off for other reasons is.
            lease.close()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.store.collector.sweep, resolved.digests)
            raise
        finally:
            lease.close()

    async def _contents(self, resolved: Resolved) -> None:
        """The layers, and beside them the configuration, so that they begin one round trip earlier."""
        manifest, diff_ids = resolved.manifest, _DiffIds(resolved.manifest)

        async def configure() -> None:
            config, body = await fetch_config(
                self.client, self.reference, manifest, self.platform, explicit=self.explicit, retry=self.retry
            )
            resolved.bodies[manifest.config.digest] = body
            diff_ids.take(config)

        with single_failure():
            async with anyio.create_task_group() as group:
                group.start_soon(configure)
                await self._layers(manifest, diff_ids, self.client)

    def _commit(self, resolved: Resolved) -> Image:
        record = RefRecord(
            reference=stored_name(self.reference),
            target=resolved.target,
            manifest=resolved.manifest_descriptor,
            image_id=resolved.manifest.config.digest,
            platform=self.platform,
        )
        return self.store.commit(record, resolved.bodies)

    async def _layers(self, manifest: Manifest, diff_ids: _DiffIds, client: RegistryClient | None) -> None:
        """All layers at once, the largest first: what takes longest should not begin last."""
        from crungo.registry.layerpull import LayerPull
        from crungo.registry.line import Line  # most pulls find that nothing has changed

        layers, blobs = sorted(dict.fromkeys(manifest.layers), key=lambda layer: -layer.size), self.store.blobs
        line = Line(
            self.limits.connections,
            sum(layer.size for layer in layers if not blobs.has(layer.digest, layer.size)),
        )
        places = anyio.Semaphore(self.limits.layers, fast_acquire=True)

        async def one(layer: Descriptor) -> None:
            try:
                await LayerPull(
                    reference=self.reference,
                    layer=layer,
                    diff_ids=partial(diff_ids.of, layer),
                    store=self.store,
                    unpacker=self.unpacker,
                    client=client,
                    line=line,
                    retry=self.retry,
                    limit=self.limits.layer_size,
                    tracker=Tracker(self.progress, layer.digest, layer.size),
                ).run()
            finally:
                places.release()

        with single_failure():
            async with anyio.create_task_group() as group:
                for layer in layers:
                    await places.acquire()  # here and not by the layers: trio starts tasks in an order of its own
                    group.start_soon(one, layer)

    def _tell_again(self, reason: str, wait: float) -> None:
        if self.progress is not None:
            self.progress(ImageRetry(reference=self.reference, reason=reason, wait=wait))

    def _tell_done(self, image: Image, *, changed: bool) -> None:
        if self.progress is not None:
            self.progress(ImageDone(reference=self.reference, digest=image.digest, changed=changed))


class _DiffIds:
    """What the configuration says of each layer, as soon as it is here."""

    def __init__(self, manifest: Manifest, config: ImageConfig | None = None) -> None:
        self._manifest = manifest
        self._found: dict[Descriptor, set[str]] = {}
        self._there = anyio.Event()
        if config is not None:
            self.take(config)

    def take(self, config: ImageConfig) -> None:
        """The configuration is here; it has as many layers as the manifest."""
        for layer, diff_id in zip(self._manifest.layers, config.diff_ids, strict=True):
            self._found.setdefault(layer, set()).add(diff_id)
        self._there.set()

    async def of(self, layer: Descriptor) -> set[str]:
        """The diff ids of a layer: one, or the configuration contradicts itself about equal layers."""
        if not self._there.is_set():
            await self._there.wait()
        return self._found[layer]
