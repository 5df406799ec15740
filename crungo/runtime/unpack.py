"""Unpack one layer: what runs in a freshly forked child of the spawner, which does nothing else and then exits.

The blob is a file that may still be growing; messages on the channel say how far it may be read. What is sent back is
one message of text (``wire.send_text``), because the archive might take this process over. One thread
decompresses it, a second hashes the tar stream, and libarchive (native/unpack.c) makes the files
in the main thread, all at once: none of them holds the interpreter's lock for long. A fourth waits for messages. For
a small blob that is complete, one does it all.

Invariant: before the first byte of the archive is looked at (four bytes tell its compression, no more), the process is
locked into the layer's empty directory (native/unpack_confine.h), and whatever it will need is loaded. From then on
nothing is imported or looked up on the file system, which belongs to the archive.

This module alone owns the pointers of native/unpack.c.
"""

from __future__ import annotations

import _queue
import _thread
import errno
import hashlib
import os
import sys

from crungo.errors import CrungoError, LayerError
from crungo.runtime import decompress, wire
from crungo.runtime._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterator
    from typing import Any

    CData = Any  # a pointer of cffi's

__all__ = ["prepare", "run"]

# `_thread` and `_queue`: to have imported `threading` makes every fork 0.35 ms longer, and `queue` every piece.

DEPTH = 6
"""Pieces that may wait between two threads."""

SMALL = 1 << 20
"""Bytes of a blob that is unpacked by one thread."""

SMALL_PIECE = 64 << 10
"""What that thread has in hand, so that it stays in the processor's cache."""

_End = BaseException | None


def prepare() -> None:
    """Do once, before the fork, what every child would else do for itself."""
    if lib.crungo_unpack_prepare() < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), "iconv")


def run(
    blob_fd: int,
    directory_fd: int,
    channel: _socket.socket,
    *,
    limit: int,
    size: int | None = None,
    user_xattrs: bool = False,
) -> None:
    """Unpack the blob into the empty directory and send one message on the channel; never raises.

    The calling process must have one thread; it cannot be used for anything else afterwards. Messages in:
    ``{"available": n}``, the first n bytes of the file are valid; ``{"end": n}``, and it has no more. The closing of
    the other end of the channel ends the process at once, unless it is one thread's and at work. Message out, one of

    * ``{"event": "unpacked", "diff_id", "unpacked_size", "entries", "opaque"}``: sha256 digest and size in bytes of the
      tar stream (the blob's is not for this process to say); ``opaque``: 1 where the layer hides all layers below it;
    * ``{"event": "error", "message", "errno"}``: ``errno`` is not 0 where the system failed rather than the archive.

    ``limit`` is the largest tar stream, in bytes. ``size`` is that of a blob that is complete already; no message is
    waited for then. ``user_xattrs``: overlay's marks are ``user.`` attributes, as it
    wants them of those who are not the host's root.
    """
    try:
        result = _unpack(_Blob(blob_fd, channel, size), directory_fd, limit, user_xattrs)
    except BaseException as error:  # the answer is the only way out of this process
        result = _failure(error)
    wire.send_text(channel, result)


def _unpack(blob: _Blob, directory_fd: int, limit: int, user_xattrs: bool) -> dict[str, int | str]:
    # The first bytes come before any thread is started, as confinement needs.
    decompress.prepare(blob.magic())
    stream = _Stream(blob, limit)
    _confine(directory_fd, user_xattrs)
    if blob.complete() and blob.size() <= SMALL:
        pieces = stream.alone()
    else:
        blob.listen()
        pieces = stream.ahead()
    entries, opaque = _extract(pieces, user_xattrs)
    # Padding follows the archive's end: it belongs to the digests.
    for _ in pieces:
        pass
    return {
        "event": "unpacked",
        "diff_id": f"sha256:{stream.hash.hexdigest()}",
        "unpacked_size": stream.size,
        "entries": entries,
        "opaque": int(opaque),
    }


def _confine(directory_fd: int, user_xattrs: bool) -> None:
    prepare()
    # A root without /dev and /usr: whatever is imported now would be the archive's.
    sys.meta_path.clear()
    sys.path.clear()
    if lib.crungo_unpack_confine(directory_fd, user_xattrs) < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), "layer directory")


class _Blob:
    """The blob's file, read no further than the channel says."""

    def __init__(self, fd: int, channel: _socket.socket, size: int | None) -> None:
        self.read_bytes = 0
        self._fd = fd
        self._channel = channel
        self._available = size or 0
        self._ended = size is not None
        self._marks: _queue.SimpleQueue[Any] = _queue.SimpleQueue()

    def size(self) -> int:
        """How much of it may be read."""
        return self._available

    def complete(self) -> bool:
        """Whether that is all of it."""
        return self._ended

    def listen(self) -> None:
        """Take messages in a thread, to the end of the process."""

        def forever() -> None:
            while True:
                self._marks.put(self._receive())

        _thread.start_new_thread(forever, ())

    def magic(self) -> bytes:
        """The first bytes; waits for them, and ends the process with the channel."""
        while self._available < 4 and not self._ended:
            self._take(self._receive())
        return os.pread(self._fd, min(4, self._available), 0)

    def read(self, n: int) -> bytes:
        """At most ``n`` bytes; waits for the first of them; none at the end."""
        while not self._marks.empty() or (self.read_bytes >= self._available and not self._ended):
            self._take(self._marks.get())
        n = min(n, self._available - self.read_bytes)
        data = os.pread(self._fd, n, self.read_bytes)
        if n and not data:
            raise LayerError(f"layer: its blob has {self.read_bytes} bytes, fewer than announced")
        self.read_bytes += len(data)
        return data

    def _receive(self) -> dict[str, Any]:
        message, fds = wire.recv(self._channel)
        for fd in fds:
            os.close(fd)
        if message is None:
            os._exit(0)  # nobody is there to tell
        return message

    def _take(self, message: dict[str, Any]) -> None:
        self._available = max(self._available, message.get("available", 0), message.get("end", 0))
        self._ended = self._ended or "end" in message


class _Pipe:
    """A queue between two threads, with room for so many items."""

    def __init__(self, room: int) -> None:
        self._items: _queue.SimpleQueue[Any] = _queue.SimpleQueue()
        self._room: _queue.SimpleQueue[None] = _queue.SimpleQueue()
        for _ in range(room):
            self._room.put(None)

    def put(self, item: Any) -> None:
        self._room.get()
        self._items.put(item)

    def get(self) -> Any:
        item = self._items.get()
        self._room.put(None)
        return item


class _Stream:
    """The tar stream in pieces, with its digest: by one of two ways, to be taken once."""

    def __init__(self, blob: _Blob, limit: int) -> None:
        self.hash = hashlib.sha256()
        self.size = 0
        self._blob = blob
        self._limit = limit

    def alone(self) -> Iterator[bytes]:
        """All is done by who takes the pieces."""

        return self._hash(decompress.tar_stream(self._blob.read, limit=self._limit, piece=SMALL_PIECE))

    def ahead(self) -> Iterator[bytes]:
        """One thread decompresses and a second hashes, a few pieces ahead of who takes them."""
        to_hash, hashed = _Pipe(DEPTH), _Pipe(DEPTH)
        _thread.start_new_thread(_pour, (decompress.tar_stream(self._blob.read, limit=self._limit), to_hash))
        _thread.start_new_thread(_pour, (self._hash(_taken(to_hash)), hashed))
        return _taken(hashed)

    def _hash(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.hash.update(piece)
            self.size += len(piece)
            yield piece


def _pour(pieces: Iterator[Any], sink: _Pipe) -> None:
    """Put all pieces into the sink, then what ended them: None, or the exception."""
    end: _End = None
    try:
        for piece in pieces:
            sink.put(piece)
    except BaseException as error:  # raised again by who takes it
        end = error
    sink.put(end)


def _taken(source: _Pipe) -> Iterator[Any]:
    """What `_pour` put in."""
    while not isinstance(item := source.get(), _End):
        yield item
    if item is not None:
        raise item


class _Feed:
    """What libarchive's reader calls: the stream's pieces, each alive until the next is asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.error: BaseException | None = None
        self._pieces = pieces
        self._piece: CData | None = None

    def next(self, block: CData) -> int:
        try:
            piece = next(self._pieces, None)
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


def _extract(pieces: Iterator[bytes], user_xattrs: bool) -> tuple[int, bool]:
    """Run the archive into the root directory: how many entries it has, and whether it hides all layers below."""
    feed = _Feed(pieces)
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
