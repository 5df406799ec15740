"""An unpacker in pure Python, for tests of the pull that need neither root nor the native module.

It checks what the contract promises to a reader: what is announced as available is in the file, and stays the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.lowlevel

from crungo.errors import LayerError
from crungo.image.layers import Unpacked

__all__ = ["Liar", "PyUnpacker", "PyUnpacking"]


class PyUnpacking:
    def __init__(self, fd: int, directory: str, limit: int) -> None:
        self._fd = fd
        self._directory = Path(directory)
        self._limit = limit
        self._seen = b""
        self.announced: list[int] = []
        self._busy = False

    async def advance(self, available: int) -> None:
        assert not self._busy, "advance was called while another call ran"
        assert available > len(self._seen)
        self._busy = True
        await anyio.lowlevel.checkpoint()
        self._seen += os.pread(self._fd, available - len(self._seen), len(self._seen))
        assert len(self._seen) == available, "announced, and not in the file"
        self.announced.append(available)
        self._busy = False

    async def finish(self, size: int) -> Unpacked:
        await anyio.lowlevel.checkpoint()
        blob = os.pread(self._fd, size + 1, 0)
        assert len(blob) == size
        assert blob.startswith(self._seen), "what was announced has changed"
        try:
            tar = gzip.decompress(blob) if blob.startswith(b"\x1f\x8b") else blob
            if len(tar) > self._limit:
                raise LayerError("layer: larger than allowed")
            entries = self._extract(tar)
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise LayerError(f"layer: {error}") from error
        return Unpacked(
            diff_id="sha256:" + hashlib.sha256(tar).hexdigest(),
            unpacked_size=len(tar),
            entries=entries,
        )

    def _extract(self, tar: bytes) -> int:
        count = 0
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                count += 1
                path = self._directory / member.name
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                elif member.isfile():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    source = archive.extractfile(member)
                    assert source is not None
                    path.write_bytes(source.read())
        for folder, _, names in os.walk(self._directory, topdown=False):
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                os.utime(path, (0, 0))
        return count


class PyUnpacker:
    """``made`` are all unpackings, ended or not; ``running`` those that are not."""

    def __init__(self) -> None:
        self.made: list[PyUnpacking] = []
        self.running = 0
        self.most = 0

    @asynccontextmanager
    async def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int, size: int | None = None
    ) -> AsyncIterator[PyUnpacking]:
        assert os.listdir(directory) == []
        assert "tar" in media_type
        unpacking = PyUnpacking(os.dup(blob_fd), directory, limit)
        self.made.append(unpacking)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield unpacking
        finally:
            self.running -= 1
            os.close(unpacking._fd)


class Liar:
    """An unpacker that was taken over: it says what is hoped for, whatever it was given, and unpacks nothing."""

    def __init__(self, diff_id: str) -> None:
        self._diff_id = diff_id

    @asynccontextmanager
    async def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int, size: int | None = None
    ) -> AsyncIterator[Liar]:
        yield self

    async def advance(self, available: int) -> None:
        pass

    async def finish(self, size: int) -> Unpacked:
        return Unpacked(diff_id=self._diff_id, unpacked_size=size, entries=1)
