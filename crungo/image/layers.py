"""Unpacked layers.

A layer has a directory of its own and becomes a lower directory of an overlay, so that layers may be unpacked in any
order and be shared by images. It is named by its blob, whose digest the pull itself computes. The diff id, which is
held against the configuration, is only the word of the process that parsed the blob: a blob that takes that process
over says what it likes, but of no layer other than its own.

Invariant: a directory below ``layers/`` was unpacked to its end from the blob with its name; whether it still is what
was unpacked is only believed of this boot, or when it was synced to disk since.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import asynccontextmanager

from crungo.errors import StoreError
from crungo.image.digest import is_digest
from crungo.image.layout import boot_id, open_file, write_new, write_whole
from crungo.image.locks import is_current, lock
from crungo.image.trees import dispose, remove_tree
from crungo.records import Record, asdict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.image.layout import Layout

__all__ = ["LayerRecord", "Layers", "Staging", "Unpacked"]


class Unpacked(Record):
    """What was unpacked, by the word of the unpacker: diff id and size of the tar, number of entries.

    ``opaque``: the layer hides all layers below it, by a mark on its root, where overlay does not look.
    """

    diff_id: str
    unpacked_size: int
    entries: int
    opaque: bool = False


class LayerRecord(Record):
    """What is known of an unpacked layer. ``blob`` is the digest of its blob, ``diff_id`` and ``size`` are its tar's;
    ``opaque``: all layers below it are hidden.
    """

    blob: str
    diff_id: str
    size: int
    entries: int
    boot_id: str
    synced: bool = False
    opaque: bool = False


class Layers:
    """The unpacked layers of one store."""

    __slots__ = ("_boot", "_layout")

    def __init__(self, layout: Layout, boot: str | None = None) -> None:
        self._layout = layout
        self._boot = boot_id() if boot is None else boot

    def path(self, blob: str) -> str:
        """The directory to mount."""
        return f"{self._layout.layer(blob)}/diff"

    def record(self, blob: str) -> LayerRecord | None:
        """The layer's record; None where there is no such layer, or its record is damaged."""
        try:
            with open(open_file(f"{self._layout.layer(blob)}/record.json"), "rb") as file:
                record = LayerRecord(**json.loads(file.read(1 << 16)))
        except (OSError, StoreError, ValueError, TypeError):
            return None
        types_fit = (
            isinstance(record.size, int)
            and isinstance(record.entries, int)
            and isinstance(record.synced, bool)
            and isinstance(record.opaque, bool)
        )
        return record if types_fit and record.blob == blob else None

    def trusted(self, blob: str, diff_id: str) -> bool:
        """Whether the layer is there, and can only be what the blob unpacked to, with this diff id."""
        record = self.record(blob)
        if record is None or record.diff_id != diff_id or not os.path.isdir(self.path(blob)):
            return False
        return record.synced or (self._boot != "" and record.boot_id == self._boot)

    def names(self) -> list[str]:
        """The digests of the blobs of all layers that there are, trusted or not."""
        try:
            names = os.listdir(self._layout.layers)
        except FileNotFoundError:
            return []
        return [digest for name in names for digest in (f"sha256:{name}", f"sha512:{name}") if is_digest(digest)]

    def discard(self, blob: str) -> str | None:
        """Take a layer away; the tree lies where the answer says, and remains to be removed. None: there was none."""
        trash = self._layout.fresh("trash")
        try:
            os.rename(self._layout.layer(blob), trash)
        except FileNotFoundError:
            return None
        return trash

    def mark_synced(self, record: LayerRecord) -> None:
        """Note that the layer has reached the disk. The store's lock must be held."""
        path = f"{self._layout.layer(record.blob)}/record.json"
        write_whole(path, _encoded(asdict(replace(record, synced=True))), temporary=self._layout.fresh("tmp"))

    @asynccontextmanager
    async def staging(self, blob: str) -> AsyncIterator[Staging]:
        """An empty directory to unpack the blob into, for this caller alone; waits while another has it.

        Whoever was waited for may have made the layer. What is not committed is removed on leaving.
        """
        import anyio.to_thread  # readers of the store have no event loop

        path = self._layout.staging(blob)
        fd = await lock(path, directory=True)
        try:
            staging = Staging(self._layout, blob, self._boot, path)
            try:
                if os.listdir(path):
                    await anyio.to_thread.run_sync(staging.empty)
                else:
                    staging.begin()
                yield staging
            finally:
                if is_current(fd, path):
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(remove_tree, path)
        finally:
            os.close(fd)


class Staging:
    """A layer on its way; ``directory`` is what it is unpacked into."""

    def __init__(self, layout: Layout, blob: str, boot: str, path: str) -> None:
        self.directory = f"{path}/diff"
        self._layout = layout
        self._blob = blob
        self._boot = boot
        self._path = path

    def begin(self) -> None:
        """Make the empty directory, where there is nothing yet."""
        os.mkdir(self.directory, 0o700)
        os.chmod(self.directory, 0o755)  # noqa: S103 - the root of a container, unless the archive says otherwise

    def empty(self) -> None:
        """Begin anew, with an empty directory. For a worker thread.

        What a killed process left may still be written to for a moment by its orphan: it is moved away first.
        """
        for name in os.listdir(self._path):
            trash = self._layout.fresh("trash")
            os.rename(f"{self._path}/{name}", trash)
            dispose(trash)
        self.begin()

    def is_first(self) -> bool:
        """Whether nothing has the place among the layers yet, so that :meth:`commit` need not remove it."""
        return not os.path.lexists(self._layout.layer(self._blob))

    def commit(self, unpacked: Unpacked) -> None:
        """Give the directory its place among the layers. The caller has compared the digests, of blob and tar.

        Where it is not the first, for a worker thread.
        """
        record = LayerRecord(
            blob=self._blob,
            diff_id=unpacked.diff_id,
            size=unpacked.unpacked_size,
            entries=unpacked.entries,
            boot_id=self._boot,
            opaque=unpacked.opaque,
        )
        write_new(f"{self._path}/record.json", _encoded(asdict(record)))
        destination = self._layout.layer(self._blob)
        while True:
            try:
                os.rename(self._path, destination)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                return
            # A layer that is not trusted, or has no record, is in the way.
            trash = self._layout.fresh("trash")
            os.rename(destination, trash)
            dispose(trash)


def _encoded(value: dict[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"
