"""What of the store is used, and the removal of what is not.

Used is what a name or a lease leads to. Removal has two steps: under the store's lock, content loses its place (blobs
are unlinked, layers renamed away); after it, trees are removed, which takes longer.

Invariant: nothing that a name or a live lease leads to is removed, and nothing that another process is making.
"""

from __future__ import annotations

import os
from contextlib import suppress

from crungo.errors import CrungoError, StoreError
from crungo.image.imageconfig import ImageConfig
from crungo.image.leases import leased, remove_stale_leases
from crungo.image.locks import exclusive, open_locked
from crungo.image.manifest import CONFIG_LIMIT, MANIFEST_LIMIT, Index, Manifest, parse_document
from crungo.image.trees import dispose, remove_tree, tree_size
from crungo.records import Record, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from crungo.image.blobs import Blobs
    from crungo.image.layers import Layers
    from crungo.image.layout import Layout
    from crungo.image.refs import RefRecord, Refs

__all__ = ["Collector", "Leftovers", "documents"]


class Leftovers(Record, frozen=False, kw_only=False):
    """What interrupted work left: paths, and the bytes on disk that they take."""

    paths: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, path: str) -> None:
        """Count one."""
        self.paths.append(path)
        self.size += tree_size(path)


def documents(blobs: Blobs, record: RefRecord) -> tuple[Manifest, ImageConfig]:
    """Manifest and configuration of an image in the store, verified.

    Raises:
        StoreError, ImageError: one of them is missing or was damaged.
    """
    what = f"store: image {record.image_id[:19]}"
    parsed = parse_document(
        blobs.read(record.manifest.digest, limit=MANIFEST_LIMIT), record.manifest.media_type, f"{what}: manifest"
    )
    if isinstance(parsed, Index):
        raise StoreError(f"{what}: its manifest is an index")
    config = ImageConfig.parse(blobs.read(parsed.config.digest, limit=CONFIG_LIMIT), f"{what}: configuration")
    config.check_against(parsed, what)
    return parsed, config


class Collector:
    """The remover of one store's unused content."""

    __slots__ = ("_blobs", "_layers", "_layout", "_refs")

    def __init__(self, layout: Layout, refs: Refs, blobs: Blobs, layers: Layers) -> None:
        self._layout = layout
        self._refs = refs
        self._blobs = blobs
        self._layers = layers

    def reachable(self, records: Iterable[RefRecord]) -> set[str]:
        """The digests of all blobs that the records lead to; layers have those of their blobs."""
        found: set[str] = set()
        for record in records:
            found.update((record.target.digest, record.manifest.digest, record.image_id))
            if record.listed is not None:
                found.add(record.listed.digest)
            with suppress(CrungoError):  # damaged: what it led to cannot be used through it anyway
                manifest, _ = documents(self._blobs, record)
                found.update(layer.digest for layer in manifest.layers)
        return found

    def used(self) -> set[str]:
        """All digests that a name or a lease leads to. The store's lock must be held."""
        return self.reachable(self._refs.all()) | leased(self._layout)

    def sweep(self, candidates: Iterable[str] | None = None) -> int:
        """Remove content that nothing uses: all of it, or only what is among ``candidates``; the bytes freed.

        Of candidates, unfinished downloads go too. For a worker thread.
        """
        trash: list[str] = []
        freed = 0
        with exclusive(self._layout.lock):
            chosen = set((*self._blobs.names(), *self._layers.names()) if candidates is None else candidates)
            for digest in chosen - self.used():
                freed += self._blobs.discard(digest)
                record = self._layers.record(digest)
                tree = self._layers.discard(digest)
                if tree is not None:
                    freed += record.size if record is not None else tree_size(tree)
                    trash.append(tree)
                if candidates is not None:
                    self._discard_part(self._layout.part(digest))
        for tree in trash:
            dispose(tree)
        return freed

    def leftovers(self, *, remove: bool, downloads: bool = True) -> Leftovers:
        """Find, and perhaps remove, what interrupted work left. For a worker thread.

        That is: downloads and layers that nobody is making, trees whose removal was cut short, temporary files.
        Downloads that can be continued are among them, unless ``downloads`` is false.
        """
        free: list[str] = []
        with exclusive(self._layout.lock):
            for name in sorted(os.listdir(self._layout.ingest)):
                path = f"{self._layout.ingest}/{name}"
                if not downloads and name.endswith((".part", ".extents")):
                    continue
                if name.endswith(".extents") and os.path.exists(path.removesuffix(".extents")):
                    continue  # goes with its part
                fd = open_locked(path)
                if fd is not None:  # nobody is making, or removing, it
                    os.close(fd)
                    free.append(path)
            if remove:
                remove_stale_leases(self._layout)
        found = Leftovers()
        for path in free:
            found.add(path)
            if not remove:
                continue
            if os.path.isdir(path):
                dispose(path)
            else:
                self._discard_part(path)
        return found

    def _discard_part(self, path: str) -> None:
        fd = open_locked(path)
        if fd is not None:
            os.unlink(path)
            remove_tree(f"{path}.extents")
            os.close(fd)
