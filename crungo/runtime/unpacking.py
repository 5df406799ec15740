"""The engine's side of unpacking: what a pull is given to hand its layers to (``image.layers.Unpacker``)."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from crungo.errors import HostError, LayerError, StoreError
from crungo.image.layers import Unpacked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.runtime.requests import Channel, SpawnerProcess

__all__ = ["SpawnerUnpacker"]


class SpawnerUnpacker:
    """Unpacks each layer in a forked, confined child of the spawner."""

    def __init__(self, spawner: SpawnerProcess) -> None:
        self._spawner = spawner

    @asynccontextmanager
    async def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int
    ) -> AsyncIterator[ChannelUnpacking]:
        """Unpack the blob into the directory; its compression is told by its content, not by ``media_type``."""
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The child reads at positions of its own, but the offset belongs to whoever opened the file.
            channel, request = self._spawner.request({"op": "unpack", "limit": limit}, [blob_fd, place])
            try:
                await to_thread.run_sync(request.send)
            except BaseException:
                channel.close()
                raise
            finally:
                request.close()
        finally:
            os.close(place)
        try:
            yield ChannelUnpacking(channel)
        finally:
            with anyio.CancelScope(shield=True):
                await _wait_for_end(channel)
            channel.close()


class ChannelUnpacking:
    """One layer on its way."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told = 0

    async def advance(self, available: int) -> None:
        """The first ``available`` bytes of the blob's file may be read."""
        # A full socket means that the child has earlier marks to read yet: this one is told with the next.
        if available > self._told and self._channel.send_if_room({"available": available}):
            self._told = available

    async def finish(self, size: int) -> Unpacked:
        """Wait for the end of the unpacking of a complete file of ``size`` bytes."""
        await to_thread.run_sync(self._channel.send, {"end": size})
        while True:
            await anyio.wait_readable(self._channel)
            message, _ = self._channel.receive()
            if message["event"] == "unpacked":
                return Unpacked(
                    digest=message["digest"],
                    size=message["size"],
                    diff_id=message["diff_id"],
                    unpacked_size=message["unpacked_size"],
                    entries=message["entries"],
                )
            if message["event"] == "error":
                raise _error(message)


def _error(message: dict[str, object]) -> LayerError | StoreError | HostError:
    text = str(message["message"])
    if not message.get("errno"):
        return LayerError(text)
    return StoreError(f"unpack: {text}")


async def _wait_for_end(channel: Channel) -> None:
    """The child reports last and then ends; an aborted one ends at once. Its directory is still when this returns."""
    channel.end()
    while True:
        await anyio.wait_readable(channel)
        if not channel.drain():
            return
