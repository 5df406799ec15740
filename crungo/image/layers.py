"""Unpacked layers.

A layer has a directory of its own and becomes a lower directory of an overlay, so that layers may be unpacked in any
order and be shared by images. Invariant: a directory below ``layers/`` was unpacked to its end from an archive with its
diff id; whether it still is what was unpacked is only believed of this boot, or when it was synced to disk since.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import asynccontextmanager

from crungo.image.layout import boot_id, write_whole
from crungo.image.locks import exclusive, is_current, lock
from crungo.image.trees import dispose, remove_tree
from crungo.records import Record, asdict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.image.layout import Layout

__all__ = ["LayerRecord", "Layers", "Staging", "Unpacked"]

_MOST_BLOBS = 100  # that a record names


class Unpacked(Record):
    """What was unpacked, by the word of the unpacker: diff id and size of the tar, number of entries.

    ``opaque``: the layer hides all layers below it, by a mark on its root, where overlay does not look.
    """

    diff_id: str
    unpacked_size: int
    entries: int
    opaque: bool = False


class LayerRecord(Record):
    """What is known of an unpacked layer. ``size`` is its tar's; ``blobs`` are digests of archives that were seen to
    unpack to it, the last one first; ``opaque``: all layers below it are hidden.
    """

    diff_id: str
    blobs: tuple[str, ...]
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

    def path(self, diff_id: str) -> str:
        """The directory to mount."""
        return f"{self._layout.layer(diff_id)}/diff"

    def record(self, diff_id: str) -> LayerRecord | None:
        """The layer's record; None where there is no such layer, or its record is damaged."""
        try:
            with open(f"{self._layout.layer(diff_id)}/record.json", "rb") as file:
                value = json.loads(file.read(1 << 16))
            record = LayerRecord(**{**value, "blobs": tuple(value["blobs"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        types_fit = (
            isinstance(record.size, int)
            and isinstance(record.entries, int)
            and all(isinstance(blob, str) for blob in record.blobs)
            and isinstance(record.synced, bool)
            and isinstance(record.opaque, bool)
        )
        return record if types_fit and record.diff_id == diff_id else None

    def trusted(self, diff_id: str) -> bool:
        """Whether the layer is there, and can only be what was unpacked."""
        record = self.record(diff_id)
        if record is None or not os.path.isdir(self.path(diff_id)):
            return False
        return record.synced or (self._boot != "" and record.boot_id == self._boot)

    def names(self) -> list[str]:
        """The diff ids of all layers that there are, trusted or not."""
        try:
            return [f"sha256:{name}" for name in os.listdir(self._layout.layers) if len(name) == 64]
        except FileNotFoundError:
            return []

    def discard(self, diff_id: str) -> str | None:
        """Take a layer away; the tree lies where the answer says, and remains to be removed. None: there was none."""
        trash = self._layout.fresh("trash")
        try:
            os.rename(self._layout.layer(diff_id), trash)
        except FileNotFoundError:
            return None
        return trash

    def comes_from(self, diff_id: str, blob: str) -> bool:
        """Whether an archive was seen to unpack to this layer: a configuration may claim it of any."""
        record = self.record(diff_id)
        return record is not None and blob in record.blobs

    def note_blob(self, diff_id: str, blob: str) -> None:
        """Note that a further archive unpacks to the layer."""
        with exclusive(self._layout.lock):
            record = self.record(diff_id)
            if record is not None:
                self._write(replace(record, blobs=(blob, *record.blobs)[:_MOST_BLOBS]))

    def mark_synced(self, record: LayerRecord) -> None:
        """Note that the layer has reached the disk. The store's lock must be held."""
        self._write(replace(record, synced=True))

    def _write(self, record: LayerRecord) -> None:
        path = f"{self._layout.layer(record.diff_id)}/record.json"
        write_whole(path, _encoded(asdict(record)), temporary=self._layout.fresh("tmp"))

    @asynccontextmanager
    async def staging(self, diff_id: str) -> AsyncIterator[Staging]:
        """An empty directory to unpack the layer into, for this caller alone; waits while another has it.

        Whoever was waited for may have made the layer. What is not committed is removed on leaving.
        """
        import anyio.to_thread  # readers of the store have no event loop

        path = self._layout.staging(diff_id)
        fd = await lock(path, directory=True)
        try:
            staging = Staging(self._layout, diff_id, self._boot, path)
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

    def __init__(self, layout: Layout, diff_id: str, boot: str, path: str) -> None:
        self.directory = f"{path}/diff"
        self._layout = layout
        self._diff_id = diff_id
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
        return not os.path.lexists(self._layout.layer(self._diff_id))

    def commit(self, unpacked: Unpacked, *, blob: str) -> None:
        """Give the directory its place among the layers. The caller has compared the digests.

        Where it is not the first, for a worker thread.
        """
        record = LayerRecord(
            diff_id=self._diff_id,
            blobs=(blob,),
            size=unpacked.unpacked_size,
            entries=unpacked.entries,
            boot_id=self._boot,
            opaque=unpacked.opaque,
        )
        with open(f"{self._path}/record.json", "xb") as file:
            file.write(_encoded(asdict(record)))
        destination = self._layout.layer(self._diff_id)
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
