"""One layer, from wherever it is to an unpacked directory and a blob, both verified.

Invariant: a blob or a layer gets its name in the store only after size, digest and diff id were compared with what
manifest and configuration say; what fails that comparison is removed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from crungo.errors import DigestMismatch, ImageError, LayerError, StoreError
from crungo.image.blobs import hash_file
from crungo.records import Record
from crungo.registry.download import Download
from crungo.registry.groups import single_failure
from crungo.registry.growinghash import GrowingHash

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from crungo.image.blobs import Part
    from crungo.image.layers import Staging, Unpacked
    from crungo.image.manifest import Descriptor
    from crungo.image.reference import Reference
    from crungo.image.store import Store
    from crungo.image.unpacker import Unpacker, Unpacking
    from crungo.registry.client import RegistryClient
    from crungo.registry.line import Line
    from crungo.registry.progress import Tracker
    from crungo.registry.retry import RetryPolicy

__all__ = ["LayerPull"]

_SMALL = 1 << 20
"""Bytes of a blob that is downloaded before it is unpacked: its unpacker, which then waits for nothing, needs half the
time of a processor, and what could overlap is a few milliseconds."""


class LayerPull(Record):
    """The making of one layer. Without a ``client``, only what is in the store can be used.

    ``diff_ids`` waits for what the configuration says of it. ``limit`` bounds the size of the unpacked tar, in bytes.
    """

    reference: Reference
    layer: Descriptor
    diff_ids: Callable[[], Awaitable[set[str]]]
    store: Store
    unpacker: Unpacker
    client: RegistryClient | None
    line: Line
    retry: RetryPolicy
    limit: int
    tracker: Tracker

    async def run(self) -> None:
        """Make blob and layer be there.

        Raises:
            RegistryError: the download failed.
            DigestMismatch, LayerError: the layer is not what manifest and configuration say, or cannot be unpacked.
            StoreError: the store is full, or lacks a blob that cannot be fetched.
        """
        known = await self._is_known()
        if known and self._has_blob():
            self.tracker.done(cached=True)
            return
        self.tracker.at("waiting", 0)
        if not known:
            async with self.store.layers.staging(self.layer.digest) as staging:
                if not await self._is_known():  # nor has anybody made it meanwhile
                    await self._unpack(staging)
        if not self._has_blob():
            await self._fetch_only()  # a repair has taken it away
        self.tracker.done(cached=False)

    async def _is_known(self) -> bool:
        layers, digest = self.store.layers, self.layer.digest
        if layers.record(digest) is None:
            return False  # whatever the configuration says
        return all(layers.trusted(digest, diff_id) for diff_id in await self.diff_ids())

    def _has_blob(self) -> bool:
        return self.client is None or self.store.blobs.has(self.layer.digest, self.layer.size)

    async def _keep(self, staging: Staging, unpacked: Unpacked) -> None:
        if staging.is_first():
            staging.commit(unpacked)
        else:  # what is not trusted any more is removed, which may take long
            await anyio.to_thread.run_sync(staging.commit, unpacked)

    async def _unpack(self, staging: Staging) -> None:
        if await self._unpack_stored(staging):
            return
        if self.client is None:
            raise StoreError(
                f"layer {self.layer.digest}: its blob is missing or was damaged", hint="pull the image again"
            )
        async with self.store.blobs.part(self.layer.digest, self.layer.size) as part:
            if part is not None:
                unpacked = await self._verified(part, lambda: self._unpack_part(part, staging), staging)
                assert unpacked is not None
                try:
                    await self._check_diff_id(unpacked)
                except ImageError:
                    part.restart()
                    raise
                part.commit()
                await self._keep(staging, unpacked)
                return
        if not await self._unpack_stored(staging):  # somebody else fetched it meanwhile
            raise StoreError(f"layer {self.layer.digest}: its blob was damaged right after it was fetched")

    async def _unpack_stored(self, staging: Staging) -> bool:
        """Unpack a blob that the store has; False when it has none, or has had a damaged one."""
        blobs, layer = self.store.blobs, self.layer
        if not blobs.has(layer.digest, layer.size):
            return False
        self.tracker.at("extracting", layer.size)
        fd = blobs.open(layer.digest)
        try:
            try:
                unpacked, good = await self._unpack_file(fd, staging)
            except LayerError:
                if await self._is_right(fd):
                    raise
                good = False
        finally:
            os.close(fd)
        if not good:
            blobs.discard(layer.digest)
            await anyio.to_thread.run_sync(staging.empty)
            return False
        await self._check_diff_id(unpacked)
        await self._keep(staging, unpacked)
        return True

    async def _fetch_only(self) -> None:
        async with self.store.blobs.part(self.layer.digest, self.layer.size) as part:
            if part is not None:
                await self._verified(part, lambda: self._fetch_part(part), None)
                part.commit()

    async def _verified(
        self, part: Part, attempt: Callable[[], Awaitable[tuple[Unpacked | None, bool]]], staging: Staging | None
    ) -> Unpacked | None:
        """Attempt it once, and once more from nothing when the bytes were wrong.

        Bytes of an earlier process may have been lost with a crash of the machine, and bytes are damaged on their way
        now and then; a registry that sends wrong ones twice is wrong.
        """
        for last in (False, True):
            try:
                unpacked, good = await attempt()
                if good:
                    return unpacked
            except LayerError:
                # Is the archive bad, or only what came of it? That takes the rest of it to know.
                await self._download(part)
                if await self._is_right(part.fd):
                    part.restart()
                    raise
            except ImageError:
                part.restart()
                raise
            part.restart()
            if staging is not None:
                await anyio.to_thread.run_sync(staging.empty)
            if last:
                break
        raise DigestMismatch(
            f"layer {self.layer.digest}: what {self.reference.registry} sends is not what its digest says"
        )

    async def _fetch_part(self, part: Part) -> tuple[None, bool]:
        await self._download(part)
        return None, await self._is_right(part.fd)

    async def _unpack_part(self, part: Part, staging: Staging) -> tuple[Unpacked | None, bool]:
        fd = part.reader()
        try:
            if self.layer.size > _SMALL:
                return await self._unpack_file(fd, staging, part)
            part.sum_up(self.layer.digest)
            await self._download(part)
            if part.found(self.layer.digest) != (self.layer.digest, self.layer.size):
                return None, False
            self.tracker.at("extracting", self.layer.size)
            async with self._unpacking(fd, staging, self.layer.size) as unpacking:
                return await unpacking.finish(self.layer.size), True
        finally:
            os.close(fd)

    async def _unpack_file(self, fd: int, staging: Staging, part: Part | None = None) -> tuple[Unpacked, bool]:
        """Unpack a file while it is downloaded into its part, or one that is complete; and whether it is the blob.

        That is seen here and not by the unpacker, which might have been taken over by just those bytes that are wrong.
        """
        layer, seen = self.layer, GrowingHash(fd, self.layer.digest)
        size = layer.size if part is None else None
        with single_failure():
            async with anyio.create_task_group() as group, self._unpacking(fd, staging, size) as unpacking:
                group.start_soon(seen.run)
                if part is not None:

                    async def available(length: int) -> None:
                        seen.advance(length)
                        await unpacking.advance(length)

                    await self._download(part, available)
                    self.tracker.at("extracting", layer.size)
                seen.advance(layer.size, ended=True)
                unpacked = await unpacking.finish(layer.size)
        return unpacked, seen.found() == (layer.digest, layer.size)

    async def _download(self, part: Part, available: Callable[[int], Awaitable[None]] | None = None) -> None:
        assert self.client is not None
        await Download(
            self.client,
            self.reference,
            self.layer.digest,
            part,
            line=self.line,
            retry=self.retry,
            tracker=self.tracker,
            available=available,
        ).run()

    def _unpacking(self, fd: int, staging: Staging, size: int | None) -> AbstractAsyncContextManager[Unpacking]:
        return self.unpacker.unpack(
            fd, staging.directory, media_type=self.layer.media_type, limit=self.limit, size=size
        )

    async def _is_right(self, fd: int) -> bool:
        """Whether the file is the blob that the manifest names."""
        found = await anyio.to_thread.run_sync(hash_file, fd, self.layer.digest)
        return found == (self.layer.digest, self.layer.size)

    async def _check_diff_id(self, unpacked: Unpacked) -> None:
        for diff_id in await self.diff_ids() - {unpacked.diff_id}:
            raise DigestMismatch(
                f"layer {self.layer.digest}: unpacks to {unpacked.diff_id}, the configuration says {diff_id}"
            )
