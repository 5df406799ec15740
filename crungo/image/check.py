"""Is the store what it says? Every name, blob and layer is looked at; what is wrong is said and, if asked, mended.

A blob is right when its bytes have its digest. A layer is right when unpacking its blob again gives the same tree,
compared entry by entry. Mending takes away what is wrong and cannot be used (the next pull fetches it), and makes again
what can be made from what is here; it never touches a layer that a lease or ``in_use`` protects.

Images come and go meanwhile. Invariant: what is said to be wrong was still a part of the store when it was found, and
nothing that has been made anew since is taken away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import anyio.to_thread

from crungo.errors import CrungoError, LayerError, StoreError
from crungo.image.blobs import hash_file
from crungo.image.collect import documents
from crungo.image.layout import OCI_LAYOUT, open_file, write_whole
from crungo.image.leases import leased
from crungo.image.locks import exclusive, is_current
from crungo.image.ociform import oci_form
from crungo.image.trees import differences, dispose, remove_tree
from crungo.records import Record

if TYPE_CHECKING:
    from crungo.image.layers import Unpacked
    from crungo.image.manifest import Descriptor, Manifest
    from crungo.image.refs import RefRecord
    from crungo.image.store import Store
    from crungo.image.unpacker import Unpacker

__all__ = ["Problem", "check"]

InUse = Callable[[str], bool]
Layers = dict[str, tuple["Descriptor", str]]
"""By the digests of their blobs: what the manifest and what the configuration say of them."""


class Problem(Record):
    """Something wrong with a ``name`` (a record, or what shows them to others), ``image``, ``blob`` or ``layer``, and
    whether it was mended."""

    kind: Literal["name", "image", "blob", "layer"]
    what: str
    message: str
    mended: bool = False


async def check(
    store: Store,
    unpacker: Unpacker | None = None,
    *,
    repair: bool = False,
    in_use: InUse = lambda _: False,
    limit: int = 1 << 40,
) -> list[Problem]:
    """Look at everything; may take as long as reading all blobs and unpacking all layers does.

    Without an ``unpacker``, layers are only looked for. ``in_use`` says whether containers use the layer of a blob.

    Raises:
        StoreError, OSError: the store cannot be read.
    """
    return await _Check(store=store, unpacker=unpacker, repair=repair, in_use=in_use, limit=limit).run()


class _Check(Record):
    store: Store
    unpacker: Unpacker | None
    repair: bool
    in_use: InUse
    limit: int

    async def run(self) -> list[Problem]:
        if not os.path.isdir(self.store.layout.root):  # noqa: ASYNC240 - one stat
            return []
        self.store.layout.create()
        found = await anyio.to_thread.run_sync(self._names)
        blobs, bad = await self._blobs()
        found += blobs
        layers: Layers = {}
        for record in self.store.refs.all():
            found += await anyio.to_thread.run_sync(self._image, record, bad, layers)
        for descriptor, diff_id in layers.values():
            found += await self._layer(descriptor, diff_id)
        return found

    def _names(self) -> list[Problem]:
        found = []
        layout, refs = self.store.layout, self.store.refs
        with exclusive(layout.lock):
            for path, message in refs.damaged():
                if self.repair:
                    remove_tree(path)
                found.append(Problem(kind="name", what=path, message=message, mended=self.repair))
            if found and self.repair:
                refs.write_index()
            shown = [(layout.marker, OCI_LAYOUT)]
            if not found:  # else it may show a name whose record is damaged
                shown.append((layout.index, refs.index()))
            for path, body in shown:
                said, right = _json_of(path), json.loads(body)
                if said == right:
                    continue
                readable = isinstance(said, dict) and said.keys() == right.keys()
                if not readable:
                    message = "was damaged; other tools cannot read the store"
                    found.append(Problem(kind="name", what=path, message=message, mended=self.repair))
                if readable or self.repair:  # not of now: its writer was killed
                    remove_tree(path)
                    write_whole(path, body, temporary=layout.fresh("tmp"))
        return found

    async def _blobs(self) -> tuple[list[Problem], set[str]]:
        found: list[Problem] = []
        bad: set[str] = set()
        for digest in self.store.blobs.names():
            if not await anyio.to_thread.run_sync(self._blob_is_right, digest):
                bad.add(digest)
                message = "is not what its digest says"
                if self.repair:
                    message += "; removed, a pull of what needs it brings it back"
                found.append(Problem(kind="blob", what=digest, message=message, mended=self.repair))
        return found, bad

    def _blob_is_right(self, digest: str) -> bool:
        """Whether a blob is what its digest says. What is not, and shall be mended, is taken away."""
        path = self.store.layout.blob(digest)
        try:
            fd = self.store.blobs.open(digest)
        except StoreError:
            if not os.path.lexists(path):  # removed since it was listed
                return True
        else:
            try:
                if hash_file(fd, digest)[0] == digest or not is_current(fd, path):
                    return True  # a pull that found it damaged, too, has fetched it anew
            finally:
                os.close(fd)
        if self.repair:
            self.store.blobs.discard(digest)
        return False

    def _image(self, record: RefRecord, bad: set[str], layers: Layers) -> list[Problem]:
        name = str(record.reference) if record.reference is not None else record.image_id
        with exclusive(self.store.layout.lock):
            if record not in self.store.refs.all():
                return []  # removed, or another image's, since
            try:
                manifest, config = documents(self.store.blobs, record)
            except CrungoError as error:
                # Without its documents nothing can be started from it; a pull brings it back.
                if self.repair:
                    self.store.refs.discard(record)
                    self.store.refs.write_index()
                return [Problem(kind="image", what=name, message=error.message, mended=self.repair)]
            layers.update(
                (layer.digest, (layer, diff_id))
                for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
            )
            return self._listed(record, manifest, name, bad) + [
                Problem(
                    kind="image",
                    what=name,
                    message=f"lacks the blob of layer {layer.digest}; pull it again to have it back",
                )
                for layer in dict.fromkeys(manifest.layers)
                if layer.digest not in bad and not self.store.blobs.has(layer.digest, layer.size)
            ]

    def _listed(self, record: RefRecord, manifest: Manifest, name: str, bad: set[str]) -> list[Problem]:
        """The OCI manifest that is listed in place of docker's, and can be made from it."""
        listed, blobs = record.listed, self.store.blobs
        if listed is None or blobs.has(listed.digest, listed.size) or (listed.digest in bad and not self.repair):
            return []
        made = oci_form(manifest)
        mended = self.repair and made is not None and made[0].digest == listed.digest
        if mended and made is not None:
            blobs.write(listed.digest, made[1])
        return [Problem(kind="image", what=name, message="lacks the manifest that index.json lists", mended=mended)]

    async def _layer(self, descriptor: Descriptor, diff_id: str) -> list[Problem]:
        """What is wrong with a layer, unless its images have been removed meanwhile."""
        fd = self._open(descriptor)
        if fd is None:
            message = "is missing, or was not synced before the machine restarted"
            there = self.store.layers.trusted(descriptor.digest, diff_id)
            found = [] if there else [Problem(kind="layer", what=descriptor.digest, message=message)]
        else:
            try:
                found = await self._difference(fd, descriptor, diff_id)
            finally:
                os.close(fd)
        if found and not await anyio.to_thread.run_sync(self._is_wanted, descriptor.digest):
            return []
        return found

    def _open(self, descriptor: Descriptor) -> int | None:
        """The blob of a layer, where it is here and there is somebody to unpack it."""
        if self.unpacker is None or not self.store.blobs.has(descriptor.digest, descriptor.size):
            return None
        try:
            return self.store.blobs.open(descriptor.digest)
        except StoreError:  # removed in this moment
            return None

    def _is_wanted(self, digest: str) -> bool:
        with exclusive(self.store.layout.lock):
            return self._has_image(digest)

    def _has_image(self, digest: str) -> bool:
        """Whether it is a part of an image. What is only leased is what a pull brings, which may have yet to come."""
        return digest in self.store.collector.reachable(self.store.refs.all())

    async def _difference(self, fd: int, descriptor: Descriptor, diff_id: str) -> list[Problem]:
        """Unpack the layer's blob once more, and compare."""
        assert self.unpacker is not None
        layers, digest = self.store.layers, descriptor.digest
        there = layers.trusted(digest, diff_id)
        async with layers.staging(digest) as staging:
            try:
                async with self.unpacker.unpack(
                    fd, staging.directory, media_type=descriptor.media_type, limit=self.limit
                ) as unpacking:
                    await unpacking.advance(descriptor.size)
                    unpacked = await unpacking.finish(descriptor.size)
                found = await anyio.to_thread.run_sync(hash_file, fd, digest)
            except LayerError as error:
                return [Problem(kind="layer", what=digest, message=error.message)]
            if (found, unpacked.diff_id) != ((digest, descriptor.size), diff_id):
                return [Problem(kind="layer", what=digest, message=f"its blob unpacks to {unpacked.diff_id}")]
            wrong = ["is missing"]
            if os.path.isdir(layers.path(digest)):  # noqa: ASYNC240 - one stat
                with suppress(FileNotFoundError):  # it is being removed
                    wrong = await anyio.to_thread.run_sync(differences, layers.path(digest), staging.directory)
            if not wrong and there:
                return []
            message = "; ".join(wrong) or "may have been damaged when the machine restarted, but was not"
            if not self.repair:
                return [Problem(kind="layer", what=digest, message=message)]

            def replace(unpacked: Unpacked) -> bool:
                trash = None
                with exclusive(self.store.layout.lock):
                    if not self._has_image(digest):
                        return False  # nor shall anything be left of it
                    if digest in leased(self.store.layout) or self.in_use(digest):
                        return False
                    trash = layers.discard(digest)
                    staging.commit(unpacked)
                if trash is not None:
                    dispose(trash)
                return True

            mended = await anyio.to_thread.run_sync(replace, unpacked)
            if not mended:
                message += "; it is in use and was left"
            return [Problem(kind="layer", what=digest, message=message, mended=mended)]


def _json_of(path: str) -> object:
    """What a file says; None where it says nothing."""
    try:
        with open(open_file(path), "rb") as file:
            return json.load(file)
    except (FileNotFoundError, StoreError, ValueError, RecursionError):
        return None
