"""A layer's blob becomes the tar stream inside it.

The content decides what it is, not a media type: gzip (RFC 1952), zstd (RFC 8878), or the tar stream itself. The
blob is consumed to its very last byte: concatenated members and frames count, padding of zeros is skipped, and anything
else after the end is an error.

Invariant: each piece that comes out is bounded in size (1 MiB), whatever goes in, and together they never exceed the
limit. A bomb costs its reader no memory, and no more disk than was allowed.
"""

from __future__ import annotations

import sys
from importlib import import_module

from crungo.errors import LayerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Read = Callable[[int], bytes]

__all__ = ["ISAL", "PIECE", "WINDOW_LIMIT", "prepare", "tar_stream"]

ISAL, ZSTANDARD = "isal.igzip_lib", "zstandard"

PIECE = 512 * 1024
"""What is asked for at once, unless the caller says less; pieces of output have at most twice as many bytes."""

WINDOW_LIMIT = 32 << 20
"""The memory that a zstd frame may ask for. RFC 8878 wants 8 MiB of every decoder; encoders for images stay at 16."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # behind a first byte of 0x50 to 0x5f
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
_GZIP_FIRST_INPUT = 16 * 1024


def prepare(magic: bytes) -> None:
    """Import what a blob that begins so needs (four bytes tell), for a process that cannot import later."""
    if magic.startswith(_GZIP):
        _library(ISAL)
    elif _is_zstd(magic):
        _library(ZSTANDARD)


def _library(name: str) -> Any:
    # An import that finds a module runs through much of the import system, too: in a fork, that is pages to copy.
    return sys.modules.get(name) or import_module(name)


def tar_stream(read: Read, *, limit: int, piece: int = PIECE) -> Iterator[bytes]:
    """The tar stream of the blob that ``read(n)`` gives, at most ``n`` bytes a call, empty at the end.

    ``piece`` is about the size of what is asked for and given.

    Raises LayerError when it is damaged, ends early, or has more than ``limit`` bytes.
    """
    reader = _Reader(read, piece)
    magic = reader.peek(6)
    if magic.startswith(_GZIP):
        pieces = _gzip(reader, piece)
    elif _is_zstd(magic):
        pieces = _zstd(reader)
    else:
        for other, name in _OTHERS.items():
            if magic.startswith(other):
                raise LayerError(f"layer: {name} compression is not one of gzip, zstd and none")
        pieces = reader.rest()
    size = 0
    for data in pieces:
        size += len(data)
        if size > limit:
            raise LayerError(f"layer: it unpacks to more than the limit of {limit} bytes")
        yield data


def _is_zstd(magic: bytes) -> bool:
    return magic.startswith(_ZSTD) or (magic[1:4] == _SKIPPABLE and magic[0] >> 4 == 5)


class _Reader:
    """The blob's bytes, with those that were read too far."""

    def __init__(self, read: Read, piece: int) -> None:
        self._read = read
        self._piece = piece
        self._data = b""
        self._at = 0

    def peek(self, n: int) -> bytes:
        """The next ``n`` bytes, or all that are left, without taking them."""
        while len(self._data) - self._at < n:
            more = self._read(self._piece)
            if not more:
                break
            self._data = self._data[self._at :] + more
            self._at = 0
        return self._data[self._at : self._at + n]

    def some(self, n: int) -> bytes:
        """From 1 to ``n`` bytes, none at the end."""
        if self._at == len(self._data):
            self._data, self._at = self._read(self._piece), 0
        piece = self._data[self._at : self._at + n]
        self._at += len(piece)
        return piece

    def exactly(self, n: int) -> bytes:
        """``n`` bytes; LayerError when the blob ends before."""
        piece = self.peek(n)
        if len(piece) < n:
            raise LayerError("layer: the zstd stream ends early")
        self._at += n
        return piece

    def put_back(self, n: int) -> None:
        """Untake the last ``n`` bytes of the last ``some``."""
        self._at -= n

    def skip_zeros(self) -> bool:
        """Skip zeros; False where the blob ends with them."""
        while piece := self.some(self._piece):
            rest = len(piece.lstrip(b"\0"))
            if rest:
                self.put_back(rest)
                return True
        return False

    def rest(self) -> Iterator[bytes]:
        """All that is left."""
        while piece := self.some(self._piece):
            yield piece


def _gzip(reader: _Reader, most: int) -> Iterator[bytes]:
    """Members one after the other. isal verifies the checksum and length of each."""
    igzip_lib = _library(ISAL)
    while True:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        # What a member leaves is copied by isal: small inputs at first, for layers made of a member per file.
        size = _GZIP_FIRST_INPUT
        while not member.eof:
            data = b""
            if member.needs_input:
                data = reader.some(size)
                if not data:
                    raise LayerError("layer: the gzip stream ends early")
                size = min(2 * size, most)
            try:
                piece = member.decompress(data, most)
            except igzip_lib.IsalError as error:
                raise LayerError(f"layer: the gzip stream is damaged: {error}") from None
            if piece:
                yield piece
        reader.put_back(len(member.unused_data))
        if not reader.skip_zeros():
            return
        if reader.peek(2) != _GZIP:
            raise LayerError("layer: garbage follows the gzip stream")


def _zstd(reader: _Reader) -> Iterator[bytes]:
    """Frames one after the other, fed block by block: a block holds at most 128 KiB, however little it takes."""
    zstandard = _library(ZSTANDARD)
    while head := reader.peek(4):
        if head.startswith(_ZSTD):
            frame = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT).decompressobj()
            try:
                for block in _zstd_frame(reader):
                    piece = frame.decompress(block)
                    if piece:
                        yield piece
            except zstandard.ZstdError as error:
                raise LayerError(f"layer: the zstd stream is damaged: {error}") from None
            if not frame.eof:
                raise LayerError("layer: the zstd stream is damaged: its last block is not the last")
        elif _is_zstd(head):
            _skip(reader, int.from_bytes(reader.exactly(8)[4:], "little"))
        elif not reader.skip_zeros():
            return
        else:
            raise LayerError("layer: garbage follows the zstd stream")


def _skip(reader: _Reader, n: int) -> None:
    while n > 0:
        piece = reader.some(min(n, PIECE))
        if not piece:
            raise LayerError("layer: the zstd stream ends early")
        n -= len(piece)


def _zstd_frame(reader: _Reader) -> Iterator[bytes]:
    """The bytes of one frame, cut at its blocks (RFC 8878, 3.1.1)."""
    descriptor = reader.peek(5)[-1]
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    size_length = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    dictionary_length = (0, 1, 2, 4)[descriptor & 3]
    yield reader.exactly(5 + (not single) + dictionary_length + size_length)
    while True:
        header = int.from_bytes(reader.peek(3), "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == 3 or size > 128 * 1024:
            raise LayerError("layer: the zstd stream is damaged: a block is malformed")
        # Kind 1 repeats one byte.
        yield reader.exactly(3 + (1 if kind == 1 else size) + (4 if last and checksum else 0))
        if last:
            return
