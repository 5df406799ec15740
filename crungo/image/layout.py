"""The store's places: which file lies where below its root, and how a small file appears whole.

    <root>/oci-layout, index.json, blobs/<algorithm>/<hex>   an OCI image layout (image-layout.md)
    <root>/refs/<name>                                       one record per image name
    <root>/layers/<hex>/{diff/,record.json}                  unpacked layers, by the digests of their blobs
    <root>/ingest/                                           what is being made, and what is being removed
    <root>/leases/                                           what running processes need kept
    <root>/lock                                              held for milliseconds, never while bytes are moved

Invariant: every function that makes a path takes a value that cannot hold a slash, or encodes it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from functools import lru_cache

from crungo.errors import StoreError
from crungo.image.digest import algorithm_of, hex_of, is_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OCI_LAYOUT", "Layout", "boot_id", "open_file", "write_all", "write_new", "write_whole"]

_DIRECTORIES = ("blobs", "blobs/sha256", "refs", "layers", "ingest", "leases")
OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'
_EMPTY_INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}\n'


class Layout:
    """Absolute paths below one root."""

    __slots__ = ("index", "ingest", "layers", "leases", "lock", "marker", "refs", "root")

    def __init__(self, root: str) -> None:
        self.root = root
        self.refs = f"{root}/refs"
        self.layers = f"{root}/layers"
        self.ingest = f"{root}/ingest"
        self.leases = f"{root}/leases"
        self.index = f"{root}/index.json"
        self.marker = f"{root}/oci-layout"
        self.lock = f"{root}/lock"

    def create(self) -> None:
        """Make what is missing, of a store that was damaged, too; cheap when all is there."""
        if not os.path.isdir(self.root):
            os.makedirs(self.root, mode=0o711, exist_ok=True)
        for name in _DIRECTORIES:
            path = f"{self.root}/{name}"
            if not os.path.isdir(path):
                os.makedirs(path, mode=0o700, exist_ok=True)
        if os.path.exists(self.marker):  # made last; an index that is missing since is not empty
            return
        for path, body in ((self.index, _EMPTY_INDEX), (self.marker, OCI_LAYOUT)):
            if not os.path.exists(path):
                write_whole(path, body, temporary=self.fresh("tmp"))

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Within the block, what the system refuses below the root is an error of the store's.

        Raises:
            StoreError: there is no room, say, or something else is in a place.
        """
        try:
            yield
        except OSError as error:
            path = error.filename2 or error.filename
            if isinstance(path, str) and f"{path}/".startswith(f"{self.root}/"):
                raise StoreError(f"store: {path}: {error.strerror}") from error
            raise

    def blob(self, digest: str) -> str:
        """Where the blob of this digest is, once it is complete and verified."""
        assert is_digest(digest)
        return f"{self.root}/blobs/{algorithm_of(digest)}/{hex_of(digest)}"

    def part(self, digest: str) -> str:
        """Where the blob is while it is downloaded; ``.extents`` beside it says which parts are there."""
        assert is_digest(digest)
        return f"{self.ingest}/{algorithm_of(digest)}-{hex_of(digest)}.part"

    def layer(self, digest: str) -> str:
        """The directory of what the blob of this digest unpacks to, and its record."""
        assert is_digest(digest)
        return f"{self.layers}/{hex_of(digest)}"

    def staging(self, digest: str) -> str:
        """Where the layer is while it is unpacked."""
        assert is_digest(digest)
        return f"{self.ingest}/layer-{hex_of(digest)}"

    def fresh(self, kind: str) -> str:
        """A name below ``ingest`` that nobody uses; ``kind`` is ``tmp`` or ``trash``."""
        return f"{self.ingest}/{kind}-{os.urandom(8).hex()}"


def open_file(path: str) -> int:
    """A descriptor for reading a file of the store, the caller's to close.

    Raises:
        FileNotFoundError: there is nothing of this name.
        StoreError: it is something else: a directory, a link, what one would wait for.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise StoreError(f"store: {path} is not a file") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError(f"store: {path} is not a file")
    return fd


def write_whole(path: str, body: bytes, *, temporary: str, mode: int = 0o644) -> None:
    """Make a small file appear at once, or replace one.

    Nothing is synced: what a crash of the machine damages is noticed by whoever reads it, since all small files of the
    store are either verified by their digest or checked when parsed.

    Raises:
        StoreError: there is no room.
        OSError: the file cannot be made.
    """
    fd = _create(temporary, mode)
    try:
        _fill(fd, body, path)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_new(path: str, body: bytes, *, mode: int = 0o644) -> None:
    """Make a small file that nobody looks at yet; errors as of :func:`write_whole`."""
    _fill(_create(path, mode), body, path)


def _create(path: str, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def _fill(fd: int, body: bytes, path: str) -> None:
    try:
        write_all(fd, body, path)
    finally:
        os.close(fd)


def write_all(fd: int, body: bytes, path: str) -> None:
    """Write all of it to a file of the store, which an error names.

    Raises:
        StoreError: there is no room.
    """
    view = memoryview(body)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise StoreError(f"store: cannot write {path}: {error.strerror}") from error


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The identity of this boot of the kernel; empty where the kernel does not tell, which no record matches."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
