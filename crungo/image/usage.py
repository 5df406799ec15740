"""What the store takes on disk, and the removal of what is not needed: the data of ``system df`` and the prune verbs.

Sizes are in bytes. Those of layers are the sizes of their tar archives, which are known without walking the trees.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Literal

from crungo.errors import ImageInUse, ImageNotKnown
from crungo.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crungo.image.reference import Reference
    from crungo.image.store import Image, Store

__all__ = ["ImageUsage", "Pruned", "Usage", "prune", "usage"]


class ImageUsage(Record):
    """An image; the size that it shares with others, the size that is its own, and how many containers use it."""

    image: Image
    shared: int
    unique: int
    containers: int


class Usage(Record):
    """The store's content: unpacked ``layers``, ``blobs``, and ``leftovers`` of interrupted work, so many files.

    ``reclaimable`` is what removing the images that no container uses would free, of layers and blobs; it does not
    include leftovers.
    """

    images: tuple[ImageUsage, ...]
    layers: int
    blobs: int
    leftovers: int
    leftover_count: int
    reclaimable: int


class Pruned(Record):
    """What a prune removed: names, ids of images, paths of leftovers; and how many bytes that freed."""

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]
    leftovers: tuple[str, ...]
    freed: int


def usage(store: Store, in_use: Callable[[Image], Sequence[str]] = lambda _: ()) -> Usage:
    """Measure the store. For a worker thread."""
    if not os.path.isdir(store.layout.ingest):
        return Usage(images=(), layers=0, blobs=0, leftovers=0, leftover_count=0, reclaimable=0)
    images = store.images()
    layers = {blob: record.size for blob in store.layers.names() if (record := store.layers.record(blob))}
    blobs = {digest: store.blobs.size(digest) for digest in store.blobs.names()}
    owners: dict[str, int] = {}
    for image in images:
        for blob in _layers(image):
            owners[blob] = owners.get(blob, 0) + 1
    rows, kept = [], set()
    for image in images:
        own = _layers(image)
        users = len(in_use(image))
        if users:
            kept |= own | {image.digest, image.target, image.id}
        rows.append(
            ImageUsage(
                image=image,
                shared=sum(layers.get(blob, 0) for blob in own if owners[blob] > 1),
                unique=sum(layers.get(blob, 0) for blob in own if owners[blob] == 1),
                containers=users,
            )
        )
    found = store.collector.leftovers(remove=False)
    return Usage(
        images=tuple(rows),
        layers=sum(layers.values()),
        blobs=sum(blobs.values()),
        leftovers=found.size,
        leftover_count=len(found.paths),
        reclaimable=sum(size for digest, size in (*layers.items(), *blobs.items()) if digest not in kept),
    )


def _layers(image: Image) -> set[str]:
    return {layer.digest for layer in image.manifest.layers}


def prune(
    store: Store,
    *,
    images: Literal["none", "dangling", "all"] = "dangling",
    leftovers: bool = True,
    in_use: Callable[[Image], Sequence[str]] = lambda _: (),
    wanted: Callable[[Image], bool] = lambda _: True,
) -> Pruned:
    """Remove images that nothing uses (``dangling``: only those without a name), and what interrupted work left.

    ``in_use`` says who uses an image, and is asked with the store's lock held, when the image would be removed; what
    got or lost a name since prune began is left, too. ``wanted`` says which images may go at all. For a worker thread.
    """
    store.layout.create()
    untagged: list[str] = []
    deleted: list[str] = []
    freed = 0
    for image in store.images() if images != "none" else []:
        if (image.references and images == "dangling") or not wanted(image):
            continue
        try:
            removal = store.remove(image.digest, force=True, in_use=partial(_refuse, store, image.references, in_use))
        except (ImageInUse, ImageNotKnown):
            continue
        untagged += removal.untagged
        deleted += removal.deleted
        freed += removal.freed
    paths: list[str] = []
    if leftovers:
        found = store.collector.leftovers(remove=True)
        paths = found.paths
        freed += found.size + store.collector.sweep()
    return Pruned(untagged=tuple(untagged), deleted=tuple(deleted), leftovers=tuple(paths), freed=freed)


def _refuse(
    store: Store, names: Sequence[Reference], in_use: Callable[[Image], Sequence[str]], image: Image
) -> Sequence[str]:
    """Raise ImageInUse for an image that is used, or does not have these names any more; else it has no users."""
    known = [record.reference for record in store.refs.all() if record.manifest.digest == image.digest]
    if in_use(image) or set(known) - {None} != set(names):
        raise ImageInUse(f"cannot remove image {image.id[7:19]}: it is used, or has other names now")
    return ()
