"""Unpack one layer: what runs in a freshly forked child of the spawner, which does nothing else and then exits.

The blob is a file that may still be growing; messages on the channel say how far it may be read. What is sent back is
one message of text (``wire.send_text``), because the archive might take this process over. One thread
decompresses it, a second hashes its bytes and those of the tar stream, and libarchive (native/unpack.c) makes the files
in the main thread, all at once: none of them holds the interpreter's lock for long. A fourth waits for messages.

Invariant: before the first byte of the archive is looked at (four bytes tell its compression, no more), the process is
locked into the layer's empty directory (native/unpack_confine.h), and whatever it will need is loaded. From then on
nothing is imported or looked up on the file system, which belongs to the archive.

This module alone owns the pointers of native/unpack.c.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import sys
import threading

from crungo.errors import CrungoError, LayerError
from crungo.runtime import decompress, wire
from crungo.runtime._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterator
    from typing import Any

    CData = Any  # a pointer of cffi's
    _Hash = hashlib._Hash

__all__ = ["run"]

DEPTH = 6
"""Pieces that may wait between two threads."""

_End = BaseException | None


def run(blob_fd: int, directory_fd: int, channel: _socket.socket, *, limit: int, user_xattrs: bool = False) -> None:
    """Unpack the blob into the empty directory and send one message on the channel; never raises.

    The calling process must have one thread; it cannot be used for anything else afterwards. Messages in:
    ``{"available": n}``, the first n bytes of the file are valid; ``{"end": n}``, and it has no more. The closing of
    the other end of the channel ends the process at once. Message out, one of

    * ``{"event": "unpacked", "digest", "size", "diff_id", "unpacked_size", "entries", "opaque"}``: sha256 digests and
      sizes in bytes of the blob and of the tar stream; ``opaque``: 1 where the layer hides all layers below it;
    * ``{"event": "error", "message", "errno"}``: ``errno`` is not 0 where the system failed rather than the archive.

    ``limit`` is the largest tar stream, in bytes. ``user_xattrs``: overlay's marks are ``user.`` attributes, as it
    wants them of those who are not the host's root.
    """
    try:
        result = _unpack(_Blob(blob_fd, channel), directory_fd, limit, user_xattrs)
    except BaseException as error:  # the answer is the only way out of this process
        result = _failure(error)
    wire.send_text(channel, result)


def _unpack(blob: _Blob, directory_fd: int, limit: int, user_xattrs: bool) -> dict[str, int | str]:
    # The owner's first message comes before any thread is started, as confinement needs.
    blob.listen_once()
    magic = blob.magic()
    decompress.prepare(magic)
    stream = _Stream(blob, limit)
    _confine(directory_fd, user_xattrs)
    blob.listen()
    stream.start()
    entries, opaque = _extract(stream, user_xattrs)
    # Padding follows the archive's end: it belongs to the digests.
    while stream.next() is not None:
        pass
    return {
        "event": "unpacked",
        "digest": f"sha256:{stream.blob_hash.hexdigest()}",
        "size": blob.read_bytes,
        "diff_id": f"sha256:{stream.hash.hexdigest()}",
        "unpacked_size": stream.size,
        "entries": entries,
        "opaque": int(opaque),
    }


def _confine(directory_fd: int, user_xattrs: bool) -> None:
    if lib.crungo_unpack_prepare() < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), "iconv")
    # A root without /dev and /usr: whatever is imported now would be the archive's.
    sys.meta_path.clear()
    sys.path.clear()
    if lib.crungo_unpack_confine(directory_fd, user_xattrs) < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), "layer directory")


class _Blob:
    """The blob's file, read no further than the channel says."""

    def __init__(self, fd: int, channel: _socket.socket) -> None:
        self.read_bytes = 0
        self._fd = fd
        self._channel = channel
        self._available = 0
        self._ended = False
        self._changed = threading.Condition()

    def listen_once(self) -> None:
        """Take one message; the process ends with the channel."""
        message, fds = wire.recv(self._channel)
        for fd in fds:
            os.close(fd)
        if message is None:
            os._exit(0)  # nobody is there to tell
        with self._changed:
            self._available = max(self._available, message.get("available", 0), message.get("end", 0))
            self._ended = self._ended or "end" in message
            self._changed.notify()

    def listen(self) -> None:
        """Take messages in a thread, to the end of the process."""

        def forever() -> None:
            while True:
                self.listen_once()

        threading.Thread(target=forever, name="channel", daemon=True).start()

    def magic(self) -> bytes:
        """The first bytes; waits for them."""
        while self._available < 4 and not self._ended:
            self.listen_once()
        return os.pread(self._fd, min(4, self._available), 0)

    def read(self, n: int) -> bytes:
        """At most ``n`` bytes; waits for the first of them; none at the end."""
        with self._changed:
            while self.read_bytes >= self._available and not self._ended:
                self._changed.wait()
            n = min(n, self._available - self.read_bytes)
        data = os.pread(self._fd, n, self.read_bytes)
        if n and not data:
            raise LayerError(f"layer: its blob has {self.read_bytes} bytes, fewer than announced")
        self.read_bytes += len(data)
        return data


class _Stream:
    """The tar stream: decompressed by one thread, hashed by a second, a few pieces ahead of who takes them.

    The second hashes the blob's bytes, too, since decompression is what takes longest.
    """

    def __init__(self, blob: _Blob, limit: int) -> None:
        self.blob_hash = hashlib.sha256()
        self.hash = hashlib.sha256()
        self.size = 0
        self._blob = blob
        self._limit = limit
        self._to_hash: queue.Queue[tuple[_Hash, bytes] | _End] = queue.Queue(2 * DEPTH)
        self._hashed: queue.Queue[bytes | _End] = queue.Queue(DEPTH)
        self._ended = False

    def start(self) -> None:
        """Start both threads; they end with the stream, or with the process."""
        threading.Thread(target=_pour, args=(self._decompress(), self._to_hash), name="decompress", daemon=True).start()
        threading.Thread(target=_pour, args=(self._hash(), self._hashed), name="hash", daemon=True).start()

    def next(self) -> bytes | None:
        """The next piece; None at the end. Raises what a thread met."""
        if self._ended:
            return None
        piece = self._hashed.get()
        if isinstance(piece, bytes):
            return piece
        self._ended = True
        if piece is not None:
            raise piece
        return None

    def _decompress(self) -> Iterator[tuple[_Hash, bytes]]:
        def read(n: int) -> bytes:
            data = self._blob.read(n)
            self._to_hash.put((self.blob_hash, data))
            return data

        for piece in decompress.tar_stream(read, limit=self._limit):
            yield self.hash, piece

    def _hash(self) -> Iterator[bytes]:
        while isinstance(item := self._to_hash.get(), tuple):
            digest, data = item
            digest.update(data)
            if digest is self.hash:
                self.size += len(data)
                yield data
        if item is not None:
            raise item


def _pour(pieces: Iterator[Any], sink: queue.Queue[Any]) -> None:
    """Put all pieces into the sink, then what ended them: None, or the exception."""
    end: _End = None
    try:
        for piece in pieces:
            sink.put(piece)
    except BaseException as error:  # raised again by who takes it
        end = error
    sink.put(end)


class _Feed:
    """What libarchive's reader calls: the stream's pieces, each alive until the next is asked for."""

    def __init__(self, stream: _Stream) -> None:
        self.error: BaseException | None = None
        self._stream = stream
        self._piece: CData | None = None

    def next(self, block: CData) -> int:
        try:
            piece = self._stream.next()
        except BaseException as error:  # C code is between here and who can handle it
            self.error = error
            return -1
        self._piece = None if piece is None else ffi.from_buffer(piece)
        if self._piece is None:
            return 0
        block[0] = self._piece
        return len(self._piece)


def _next_block(context: CData, block: CData) -> int:
    feed: _Feed = ffi.from_handle(context)
    return feed.next(block)


ffi.def_extern(name="crungo_unpack_read", error=-1)(_next_block)


def _extract(stream: _Stream, user_xattrs: bool) -> tuple[int, bool]:
    """Run the archive into the root directory: how many entries it has, and whether it hides all layers below."""
    feed = _Feed(stream)
    handle = ffi.new_handle(feed)
    result = ffi.new("struct crungo_unpack_result *")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    status = lib.crungo_unpack(root, user_xattrs, lib.crungo_unpack_read, handle, result)
    if feed.error is not None:
        raise feed.error
    if status < 0:
        reason, name = ffi.string(result.reason), ffi.string(result.name)
        subject = f"layer entry '{_printable(name)}'" if name else "layer"
        message = f"{subject}: {_printable(reason)}"
        if result.error in _ARCHIVE_ERRORS:
            raise LayerError(message)
        raise _SystemError(result.error, message)
    return result.entries, bool(result.opaque_root)


class _SystemError(OSError):
    """The system refused something that the archive has a right to: ``strerror`` is the whole message."""


_ARCHIVE_ERRORS = frozenset(
    {
        0,
        errno.EEXIST,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ERANGE,
    }
)
"""What an archive can provoke by itself; 0 is its reader's own verdict."""


def _printable(text: bytes, limit: int = 600) -> str:
    """Bytes of an archive as one line for people: no control characters, nothing that a terminal obeys."""
    decoded = text.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else _escape(ord(c)) for c in decoded)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def _escape(code: int) -> str:
    # Not the unicode_escape codec: it would be imported now, from the archive's root.
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _failure(error: BaseException) -> dict[str, int | str]:
    number = 0
    if isinstance(error, CrungoError):
        message = error.message
    elif isinstance(error, _SystemError):
        message, number = str(error.strerror), error.errno or 0
    elif isinstance(error, OSError):
        message, number = f"layer: {error.filename or 'unpacking'}: {error.strerror}", error.errno or 0
    elif isinstance(error, MemoryError):
        message, number = "layer: not enough memory to unpack it", errno.ENOMEM
    else:
        message = f"layer: {type(error).__name__}: {error}"
    return {"event": "error", "message": _printable(message.encode("utf-8", "backslashreplace"), 1000), "errno": number}
