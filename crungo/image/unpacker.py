"""What a pull asks of whoever unpacks layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from crungo.image.layers import Unpacked

__all__ = ["Unpacker", "Unpacking"]


class Unpacking(Protocol):
    """One layer being unpacked; its file may still grow."""

    async def advance(self, available: int) -> None:
        """The first ``available`` bytes of the file may be read now."""

    async def finish(self, size: int) -> Unpacked:
        """The file is complete, with ``size`` bytes; wait for the end.

        Raises:
            LayerError: the archive is malformed, hostile, or larger than the limit.
        """


class Unpacker(Protocol):
    """Whoever unpacks layers, in another process."""

    def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int, size: int | None = None
    ) -> AbstractAsyncContextManager[Unpacking]:
        """Unpack the archive in an open file into an existing empty directory; leaving the context early aborts.

        ``limit`` bounds the size of the tar, in bytes. ``size`` says that the file is complete already, with so many
        bytes, which are not announced any more. The reader keeps its own position in the file.
        """
