"""The store of images: names, manifests, blobs and unpacked layers below one root.

There is no daemon and no database: files appear by rename, and processes meet at locks on single objects (see
``layout`` for the places and ``locks`` for the way of locking). All calls here are short and blocking, milliseconds;
those that may take longer say so and belong into a worker thread.

Invariant: what ``image`` and ``images`` return was verified by digest, manifest and configuration alike; whether its
layers are unpacked and intact is what ``untrusted`` tells, and what a pull makes true.
"""

from __future__ import annotations

import os
import re

from crungo.errors import CrungoError, ImageInUse, ImageNotKnown, StoreError, UsageError
from crungo.image.blobs import Blobs
from crungo.image.collect import Collector, documents
from crungo.image.layers import Layers
from crungo.image.layout import Layout
from crungo.image.leases import Lease, holders, remove_stale_leases
from crungo.image.locks import exclusive
from crungo.image.manifest import Manifest, parse_document
from crungo.image.ociform import oci_form
from crungo.image.reference import Reference
from crungo.image.refs import RefRecord, Refs, stored_name
from crungo.records import Record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from crungo.image.imageconfig import ImageConfig
    from crungo.image.layers import LayerRecord
    from crungo.paths import Roots

__all__ = ["Image", "Removal", "Store"]

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


class Image(Record):
    """An image in the store.

    ``id`` is the digest of its configuration, ``digest`` that of its manifest, ``target`` that of what the registry
    gave for the name (the same, or an index). ``layers`` are absolute paths of directories to stack, lowest first, none
    twice and none below one that hides them. ``size`` is in bytes, of all its layers unpacked.
    """

    id: str
    digest: str
    target: str
    references: tuple[Reference, ...]
    config: ImageConfig
    manifest: Manifest
    layers: tuple[str, ...]
    size: int
    created: datetime | None


class Removal(Record):
    """What a removal did: names taken away, ids of images that are gone with their last name, bytes freed."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    freed: int = 0


class Store:
    """The images below one root. Making one touches nothing; the first write makes the directories."""

    def __init__(self, roots: Roots, *, boot: str | None = None) -> None:
        self.layout = Layout(roots.root)
        self.refs = Refs(self.layout)
        self.blobs = Blobs(self.layout)
        self.layers = Layers(self.layout, boot)
        self.collector = Collector(self.layout, self.refs, self.blobs, self.layers)

    # ---- reading

    def image(self, what: str | Reference) -> Image:
        """The image of a name, an id, an unambiguous beginning of an id, or the digest of a manifest.

        Raises:
            ImageNotKnown: there is none.
            StoreError: its records were damaged, or several ids begin so.
        """
        records = self.refs.all()
        record, _ = self._resolve(what, records)
        names = tuple(r.reference for r in records if r.reference is not None and _same_image(r, record))
        return self._load(record, names)

    def images(self) -> list[Image]:
        """All images, newest first; those whose records were damaged are left out (``check`` lists them)."""
        groups: dict[str, list[RefRecord]] = {}
        for record in self.refs.all():
            groups.setdefault(record.manifest.digest, []).append(record)
        found = []
        for records in groups.values():
            try:
                found.append(self._load(records[0], tuple(r.reference for r in records if r.reference is not None)))
            except CrungoError:
                continue
        return sorted(found, key=lambda image: image.created.timestamp() if image.created else 0.0, reverse=True)

    def record(self, what: str | Reference) -> RefRecord:
        """The record that a name or an id leads to; errors as for ``image``."""
        return self._resolve(what, self.refs.all())[0]

    def untrusted(self, image: Image) -> tuple[str, ...]:
        """The digests of its layers that are missing, or may have been damaged by a crash of the machine."""
        pairs = zip(image.manifest.layers, image.config.diff_ids, strict=True)
        return tuple(layer.digest for layer, diff_id in pairs if not self.layers.trusted(layer.digest, diff_id))

    def has_blobs(self, image: Image) -> bool:
        """Whether the blobs of all its layers are there, as other readers of the layout need them."""
        return all(self.blobs.has(layer.digest, layer.size) for layer in image.manifest.layers)

    # ---- writing

    def lease(self, digests: Iterable[str], *, holder: str = "") -> Lease:
        """Keep content, blobs with what they unpack to, from being removed until the lease is closed.

        ``holder`` says who uses it, where somebody does: see ``users``.
        """
        self.layout.create()
        with exclusive(self.layout.lock):
            remove_stale_leases(self.layout)
            return Lease(self.layout, digests, holder)

    def keep(self, image: Image, *, holder: str = "") -> Lease:
        """Keep what is here of an image from being removed, also when its names go, until the lease is closed."""
        parts = (layer.digest for layer in image.manifest.layers)
        return self.lease((image.id, image.digest, image.target, *parts), holder=holder)

    def hold(self, image: Image) -> Lease:
        """Keep an image for as long as it is used.

        Raises:
            ImageNotKnown: it has been removed since it was looked up.
        """
        lease = self.keep(image, holder=f"process {os.getpid()}")
        if all(os.path.isdir(layer) for layer in image.layers):
            return lease
        lease.close()
        raise ImageNotKnown(f"No such image: {image.id}")

    def users(self, image: Image) -> Sequence[str]:
        """Who holds an image, in words: the ``in_use`` of ``remove`` and ``prune``. The store's lock must be held."""
        return holders(self.layout).get(image.digest, ())

    def in_use(self) -> Callable[[Image], Sequence[str]]:
        """Who holds which image at this moment: the ``in_use`` of ``usage``."""
        if not os.path.isdir(self.layout.leases):
            return lambda _: ()
        with exclusive(self.layout.lock):
            held = holders(self.layout)
        return lambda image: held.get(image.digest, ())

    def commit(self, record: RefRecord, bodies: Mapping[str, bytes]) -> Image:
        """Give a complete image its name. ``bodies`` are its small blobs (manifests, configuration), verified."""
        texts = dict(bodies)
        manifest = parse_document(texts[record.manifest.digest], record.manifest.media_type, "store: manifest")
        listed = oci_form(manifest) if isinstance(manifest, Manifest) else None
        if listed is not None:
            record = replace(record, listed=listed[0])
            texts[listed[0].digest] = listed[1]
        with exclusive(self.layout.lock):
            for digest, body in texts.items():
                self.blobs.write(digest, body)
            self._put(record)
            self.refs.write_index()
            return self.image(record.reference if record.reference is not None else record.image_id)

    def tag(self, source: str | Reference, target: Reference) -> None:
        """Give an image a further name; an image that had this name loses it.

        Raises:
            ImageNotKnown: there is no such image.
            UsageError: the new name has a digest.
        """
        if target.digest is not None:
            raise UsageError(f"cannot tag {str(target)!a}: a name with a digest belongs to what has this digest")
        self.layout.create()
        with exclusive(self.layout.lock):
            self._put(replace(self.record(source), reference=target))
            self.refs.write_index()

    def untag(self, reference: Reference) -> None:
        """Take a name away; the image stays, if need be without a name.

        Raises:
            ImageNotKnown: there is no such name.
        """
        self.layout.create()
        with exclusive(self.layout.lock):
            record = self.refs.get(reference)
            if record is None:
                raise ImageNotKnown(f"No such image: {reference}")
            self.refs.discard(record)
            self._keep_nameless(record)
            self.refs.write_index()

    def remove(
        self, what: str | Reference, *, force: bool = False, in_use: Callable[[Image], Sequence[str]] | None = None
    ) -> Removal:
        """Remove a name and, with its last name, the image; an id means all its names. For a worker thread.

        ``in_use`` says which containers use an image. Such an image keeps its content: without ``force`` the removal is
        refused, with it the image only loses its names, if it has any.

        Raises:
            ImageNotKnown: there is no such image.
            ImageInUse: a container uses it, or an id has names of several repositories and ``force`` is not given.
        """
        self.layout.create()
        with exclusive(self.layout.lock):
            records = self.refs.all()
            chosen, by_name = self._resolve(what, records)
            siblings = [record for record in records if _same_image(record, chosen)]
            going = [chosen] if by_name else siblings
            names = tuple(record.reference.familiar for record in going if record.reference is not None)
            repositories = {record.reference.name for record in going if record.reference is not None}
            if len(repositories) > 1 and not force:
                raise ImageInUse(
                    f"cannot remove image {chosen.image_id[7:19]}: it has names of several repositories",
                    hint="remove it by its names, or use force",
                )
            if len(going) < len(siblings):
                self._drop(going)
                return Removal(untagged=names)
            users = self._users(chosen, in_use)
            if users and not (force and names):
                raise ImageInUse(
                    f"cannot remove image {chosen.image_id[7:19]}: it is used by {', '.join(users)[:300]}",
                    hint="end its containers first",
                )
            candidates = self.collector.reachable([chosen])
            if users:
                self._drop(going)
                self._keep_nameless(chosen)
                return Removal(untagged=names)
            try:
                self._drop(going)
                listed = True
            except (OSError, StoreError):  # on a full disk, there is room for the new index when the content has gone
                listed = False
        freed = self.collector.sweep(candidates)
        if not listed:
            with exclusive(self.layout.lock):
                self.refs.write_index()
        return Removal(untagged=names, deleted=(chosen.image_id,), freed=freed)

    def settle(self) -> int:
        """Write to the disk what was unpacked, and remember that it is there; the number of layers. May take long.

        Until then a layer is believed only as long as the machine runs, and unpacked again from its blob after a
        restart. Meant for when nobody waits: for a worker thread after a pull, or at the end of an engine.
        """
        pending = [
            record
            for blob in self.layers.names()
            if (record := self.layers.record(blob)) and not record.synced and self.layers.trusted(blob, record.diff_id)
        ]
        if not pending:
            return 0
        _sync_file_system(self.layout.root)
        settled = 0
        with exclusive(self.layout.lock):
            for record in pending:
                if self.layers.record(record.blob) == record:  # not removed or replaced since
                    self.layers.mark_synced(record)
                    settled += 1
        return settled

    # ---- inside

    def _load(self, record: RefRecord, names: tuple[Reference, ...]) -> Image:
        manifest, config = documents(self.blobs, record)
        # Overlay refuses a directory twice. Only the upper of two equal layers matters: it repeats all the lower did.
        unique = tuple(reversed(dict.fromkeys(layer.digest for layer in reversed(manifest.layers))))
        known = {blob: self.layers.record(blob) for blob in unique}
        return Image(
            id=manifest.config.digest,
            digest=record.manifest.digest,
            target=record.target.digest,
            references=tuple(sorted(names, key=str)),
            config=config,
            manifest=manifest,
            layers=tuple(self.layers.path(blob) for blob in _visible(known)),
            size=sum(layer.size for layer in known.values() if layer is not None),
            created=config.created,
        )

    def _resolve(self, what: str | Reference, records: Sequence[RefRecord]) -> tuple[RefRecord, bool]:
        """The record that was meant, and whether by a name. A whole id comes first, then names, then parts of ids."""
        if isinstance(what, Reference):
            match, reference = None, what
        else:
            match = _ID.fullmatch(what)
            if match is not None and (len(match[1]) == 64 or what.startswith("sha256:")):
                return _by_id(records, match[1], what), False
            reference = Reference.parse(what)
        record = self._named(reference, records)
        if record is not None:
            return record, True
        if match is not None:
            return _by_id(records, match[1], str(what)), False
        raise ImageNotKnown(f"No such image: {reference.familiar}")

    def _named(self, reference: Reference, records: Sequence[RefRecord]) -> RefRecord | None:
        wanted = stored_name(reference)
        for record in records:
            if record.reference == wanted:
                return record
        if wanted.digest is None:
            return None
        for record in records:  # known by a tag of the same repository
            name = record.reference.name if record.reference is not None else wanted.name
            if name == wanted.name and wanted.digest in (record.target.digest, record.manifest.digest):
                return record
        return None

    def _put(self, record: RefRecord) -> None:
        before = self.refs.get(record.reference) if record.reference is not None else None
        self.refs.put(record)
        if record.reference is not None:
            self.refs.discard(replace(record, reference=None))
        if before is not None and not _same_image(before, record):
            self._keep_nameless(before)

    def _keep_nameless(self, record: RefRecord) -> None:
        """An image that lost a name stays in the store: without a name, when it has no other."""
        if not any(_same_image(other, record) for other in self.refs.all()):
            self.refs.put(replace(record, reference=None))
            self.refs.write_index()

    def _drop(self, records: Iterable[RefRecord]) -> None:
        for record in records:
            self.refs.discard(record)
        self.refs.write_index()

    def _users(self, record: RefRecord, in_use: Callable[[Image], Sequence[str]] | None) -> Sequence[str]:
        if in_use is None:
            return ()
        try:
            image = self._load(record, ())
        except CrungoError:  # damaged: nothing could have been started from it
            return ()
        return in_use(image)


def _visible(layers: Mapping[str, LayerRecord | None]) -> list[str]:
    """Those from the uppermost layer that hides all below it; ``layers`` in their order, lowest first."""
    visible = list(layers)
    hiding = [number for number, layer in enumerate(layers.values()) if layer is not None and layer.opaque]
    return visible[hiding[-1] :] if hiding else visible


def _same_image(one: RefRecord, other: RefRecord) -> bool:
    return one.manifest.digest == other.manifest.digest


def _by_id(records: Sequence[RefRecord], beginning: str, text: str) -> RefRecord:
    whole = f"sha256:{beginning}"
    for record in records:
        if record.manifest.digest == whole:
            return record
    # The digest of an index is what a pull prints; an image that has lost its name to another platform's shares it.
    indexed = [record for record in records if record.target.digest == whole]
    named = [record for record in indexed if record.reference is not None]
    begun = [record for record in records if record.image_id.startswith(whole)]
    found = {record.manifest.digest: record for record in named or indexed or begun}
    if not found:
        raise ImageNotKnown(f"No such image: {text}")
    if len({record.image_id for record in found.values()}) > 1:
        raise StoreError(f"image id {text} is ambiguous: it stands for {len(found)} images")
    return next(iter(found.values()))


def _sync_file_system(path: str) -> None:
    """syncfs(2): only the file system of the store, not the whole machine as os.sync would."""
    import ctypes  # 4 ms, that no reader of the store should pay

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise StoreError(f"store: cannot sync {path}: {os.strerror(number)}")
    finally:
        os.close(fd)
