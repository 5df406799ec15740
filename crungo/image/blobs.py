"""Blobs: content by its digest, and the parts of a blob that is on its way.

Invariant: a file below ``blobs/`` had its digest and size verified before it got its name there. It may have been
damaged since, by a crash of the machine or by hand, so that each reader verifies what it reads.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from contextlib import asynccontextmanager, contextmanager, suppress

from crungo.errors import DigestMismatch, StoreError
from crungo.image.digest import ALGORITHMS, hasher, hex_of, is_digest
from crungo.image.extents import Extents
from crungo.image.layout import open_file, write_whole
from crungo.image.locks import lock
from crungo.image.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from hashlib import _Hash

    from crungo.image.layout import Layout

__all__ = ["Blobs", "Part", "Segment", "hash_file"]

_RECORD = struct.Struct("<QQ")  # start and end of an extent
_MOST_EXTENTS = 1 << 20
_SLOW_WRITE = 0.005  # seconds
_PIECE = 128 << 10  # bytes: fewer than the processor's cache has


class Blobs:
    """The blobs of one store."""

    __slots__ = ("_layout",)

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def has(self, digest: str, size: int) -> bool:
        """Whether a blob is there, with this size; its content is not looked at."""
        try:
            status = os.lstat(self._layout.blob(digest))
        except FileNotFoundError:
            return False
        return status.st_size == size and stat.S_ISREG(status.st_mode)

    def names(self) -> list[str]:
        """The digests of all blobs."""
        found: list[str] = []
        for algorithm in ALGORITHMS:
            with suppress(FileNotFoundError):  # few have any by sha512
                found += (f"{algorithm}:{name}" for name in os.listdir(f"{self._layout.root}/blobs/{algorithm}"))
        return sorted(digest for digest in found if is_digest(digest))

    def size(self, digest: str) -> int:
        """Bytes of a blob; 0 when it is not there."""
        try:
            return os.lstat(self._layout.blob(digest)).st_size
        except FileNotFoundError:
            return 0

    def open(self, digest: str) -> int:
        """A descriptor for reading a blob, the caller's to close.

        Raises:
            StoreError: it is not there, or not a file.
        """
        try:
            return open_file(self._layout.blob(digest))
        except FileNotFoundError:
            raise StoreError(f"store: blob {digest} is missing", hint="pull the image again") from None

    def read(self, digest: str, *, limit: int) -> bytes:
        """The whole of a small blob, verified.

        Raises:
            StoreError: it is missing, or larger than ``limit`` bytes.
            DigestMismatch: it was damaged.
        """
        with os.fdopen(self.open(digest), "rb") as file:
            body = file.read(limit + 1)
        if len(body) > limit:
            raise StoreError(f"store: blob {digest} is larger than {limit} bytes")
        state = hasher(digest)
        state.update(body)
        if state.hexdigest() != hex_of(digest):
            raise DigestMismatch(f"store: blob {digest} was damaged", hint="crungo system check --repair")
        return body

    def write(self, digest: str, body: bytes) -> None:
        """Keep a small blob whose digest the caller has verified. The store's lock must be held."""
        path = self._layout.blob(digest)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_whole(path, body, temporary=self._layout.fresh("tmp"))

    def discard(self, digest: str) -> int:
        """Remove a blob, if it is there; the bytes that this frees."""
        size = self.size(digest)
        remove_tree(self._layout.blob(digest))
        return size

    @asynccontextmanager
    async def part(self, digest: str, size: int) -> AsyncIterator[Part | None]:
        """The unfinished file of a blob, for this caller alone; waits while another has it.

        Yields None when the blob is complete, having been finished by whoever was waited for. What a caller wrote and
        did not commit stays, for the next one to continue.
        """
        path = self._layout.part(digest)
        fd = await lock(path)
        try:
            if self.has(digest, size):
                os.unlink(path)
                yield None
                return
            part = Part(fd, path, self._layout.blob(digest), size)
            try:
                yield part
            finally:
                part.close()
        finally:
            os.close(fd)


class Part:
    """A blob of ``size`` bytes that is on its way. ``fd`` is open for reading and writing, and carries the lock."""

    def __init__(self, fd: int, path: str, destination: str, size: int) -> None:
        self.fd = fd
        self.size = size
        self.extents = Extents()
        self._path = path
        self._destination = destination
        self._gone = False
        self._threaded = False
        self._sum: _Hash | None = None
        self._summed = 0
        self._journal = os.open(f"{path}.extents", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._slots = 0
        try:
            self._load()
        except BaseException:
            os.close(self._journal)
            raise

    def segment(self, start: int) -> Segment:
        """Begin to write at an offset. Segments of one part must not overlap."""
        self._slots += 1
        return Segment(self, start, self._slots - 1)

    def reader(self) -> int:
        """A descriptor of its own for reading, the caller's to close; it does not share the lock."""
        return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def sum_up(self, digest: str) -> None:
        """Take the digest (by the algorithm of ``digest``) of what is written from now on, where that is in order: it
        is cheaper while the bytes are at hand, but the loop's thread does it. For small parts."""
        self._sum, self._summed = hasher(digest), 0

    def found(self, digest: str) -> tuple[str, int]:
        """The digest (by the algorithm of ``digest``) and the size of the file, as of :func:`hash_file`."""
        if self._sum is not None and self._summed == os.fstat(self.fd).st_size:
            return f"{self._sum.name}:{self._sum.hexdigest()}", self._summed
        return hash_file(self.fd, digest)

    def commit(self) -> None:
        """Give the file its name among the blobs. The caller has verified digest and size."""
        os.fchmod(self.fd, 0o644)
        try:
            os.rename(self._path, self._destination)
        except FileNotFoundError:  # the first blob by its algorithm
            os.makedirs(os.path.dirname(self._destination), mode=0o700, exist_ok=True)
            os.rename(self._path, self._destination)
        self._gone = True
        self._forget_journal()

    def restart(self) -> None:
        """Drop all that was written: it turned out to be wrong."""
        self.extents = Extents()
        os.ftruncate(self._journal, 0)
        os.ftruncate(self.fd, 0)
        self._slots = 0
        self._sum = None

    def close(self) -> None:
        """Stop writing; an unfinished file stays if there is something in it."""
        if not self._gone and not len(self.extents):
            self._forget_journal()
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        os.close(self._journal)

    def _forget_journal(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._path}.extents")

    def _load(self) -> None:
        """Read which extents an earlier process wrote, and write them down again without overlaps.

        Nothing here is trusted: the digest of the whole decides in the end.
        """
        length = os.fstat(self.fd).st_size
        raw = os.pread(self._journal, _RECORD.size * _MOST_EXTENTS, 0)
        found = Extents()
        for start, end in _RECORD.iter_unpack(raw[: len(raw) - len(raw) % _RECORD.size]):
            if start < end <= min(length, self.size):
                found.add(start, end)
        self.extents = found
        compact = b"".join(_RECORD.pack(start, end) for start, end in found)
        self._note(compact, 0)
        os.ftruncate(self._journal, len(compact))
        self._slots = len(found)

    async def _write(self, pieces: Sequence[bytes], offset: int) -> None:
        # A write into the page cache takes about as long as the way to a thread and back (0.2 ms for 1 MiB), so that it
        # is made right here, until one has shown that the disk is behind and writes wait for it.
        if self._threaded:
            from anyio import to_thread

            await to_thread.run_sync(self._write_now, pieces, offset)
            return
        before = time.monotonic()
        self._write_now(pieces, offset)
        if time.monotonic() - before > _SLOW_WRITE:
            self._threaded = True

    def _write_now(self, pieces: Sequence[bytes], offset: int) -> None:
        with _writing(self._path):
            done = os.pwritev(self.fd, pieces, offset)
            if done < (total := sum(map(len, pieces))):  # the disk is full, nearly; the rest says so
                rest = memoryview(b"".join(pieces))
                while done < total:
                    done += os.pwrite(self.fd, rest[done:], offset + done)

    def _add_up(self, pieces: Sequence[bytes], offset: int, length: int) -> None:
        if self._sum is None:
            return
        if offset != self._summed:
            self._sum = None  # out of order
            return
        for piece in pieces:
            self._sum.update(piece)
        self._summed += length

    def _record(self, slot: int, start: int, end: int) -> None:
        self.extents.add(start, end)
        self._note(_RECORD.pack(start, end), slot * _RECORD.size)

    def _note(self, records: bytes, offset: int) -> None:
        with _writing(self._path):
            os.pwrite(self._journal, records, offset)


class Segment:
    """One run of bytes being written into a part; ``position`` is where the next byte goes."""

    __slots__ = ("_part", "_slot", "position", "start")

    def __init__(self, part: Part, start: int, slot: int) -> None:
        self._part = part
        self._slot = slot
        self.start = start
        self.position = start

    async def write(self, pieces: Sequence[bytes], length: int) -> None:
        """Append ``length`` bytes, given in pieces (fewer than IOV_MAX, 1024)."""
        await self._part._write(pieces, self.position)
        self._part._add_up(pieces, self.position, length)
        self.position += length
        # After the bytes: a process that is killed in between has written more than it says, never less.
        self._part._record(self._slot, self.start, self.position)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Within the block, what the disk refuses is a StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise StoreError(f"store: cannot write {path}: {error.strerror}") from error
        raise


def hash_file(fd: int, digest: str) -> tuple[str, int]:
    """The digest (by the algorithm of ``digest``) and the size of an open file. For a worker thread."""
    state = hasher(digest)
    size = 0
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    while count := os.preadv(fd, [buffer], size):
        state.update(view[:count])
        size += count
    return f"{state.name}:{state.hexdigest()}", size
