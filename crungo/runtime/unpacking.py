"""The engine's side of unpacking: what a pull is given to hand its layers to (``image.layers.Unpacker``).

Invariant: what comes from the process that reads the archive is text, taken for no more than a claim by somebody who
may lie: each field is checked for its form, and the caller compares the digests with those it wants.
"""

from __future__ import annotations

import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from crungo.errors import CrungoError, LayerError, StoreError, printable
from crungo.image.digest import is_digest
from crungo.image.layers import Unpacked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.runtime.requests import Channel, SpawnerProcess

__all__ = ["SpawnerUnpacker", "failure_text", "mark"]

_FAULTS = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS})
"""Ends that the archive provoked; other signals came from outside."""


class SpawnerUnpacker:
    """Unpacks each layer in a confined process of its own."""

    def __init__(self, spawner: SpawnerProcess) -> None:
        self._spawner = spawner

    @asynccontextmanager
    async def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int, size: int | None = None
    ) -> AsyncIterator[ChannelUnpacking]:
        """Unpack the blob into the directory; its compression is told by its content, not by ``media_type``."""
        # The child reads at positions of its own, but the offset belongs to whoever opened the file.
        message = {"op": "unpack", "directory": directory, "limit": limit, "size": size}
        channel, request = self._spawner.request(message, [blob_fd])
        try:
            try:
                if not request.send_if_room():
                    await to_thread.run_sync(request.send)
            finally:
                request.close()
            yield ChannelUnpacking(channel, complete=size is not None)
        finally:
            with anyio.CancelScope(shield=True):
                await _wait_for_end(channel)
            channel.close()


class ChannelUnpacking:
    """One layer on its way."""

    def __init__(self, channel: Channel, *, complete: bool) -> None:
        self._channel = channel
        self._complete = complete  # and its child knows
        self._told = 0

    async def advance(self, available: int) -> None:
        """The first ``available`` bytes of the blob's file may be read."""
        # A full socket means that the child has earlier marks to read yet: this one is told with the next.
        if available > self._told and self._channel.send_if_room(mark(available)):
            self._told = available

    async def finish(self, size: int) -> Unpacked:
        """Wait for the end of the unpacking of a complete file of ``size`` bytes."""
        while not self._complete and not self._channel.send_if_room(mark(size, ended=True)):
            await anyio.wait_writable(self._channel)
        await anyio.wait_readable(self._channel)
        try:
            message = self._channel.receive_text()
        except ValueError:
            raise _nonsense() from None
        if message.get("event") == "unpacked":
            return _unpacked(message)
        raise _error(message)


def mark(available: int, *, ended: bool = False) -> bytes:
    """How much of the blob's file may be read, and whether that is all of it (``native/blob.h``)."""
    return available.to_bytes(8, sys.byteorder) + ended.to_bytes(8, sys.byteorder)


def _unpacked(message: dict[str, int | str]) -> Unpacked:
    diff_id = str(message.get("diff_id"))
    numbers = [message.get(name) for name in ("unpacked_size", "entries", "opaque")]
    checked = [number for number in numbers if isinstance(number, int) and number >= 0]
    if len(checked) < len(numbers) or not is_digest(diff_id):
        raise _nonsense()
    return Unpacked(diff_id=diff_id, unpacked_size=checked[0], entries=checked[1], opaque=bool(checked[2]))


def _error(message: dict[str, int | str]) -> CrungoError:
    """What an ``error`` event of the child means, or an ``ended``, the spawner's or in its name."""
    if message.get("event") == "ended":
        code = message.get("code")
        return _ended(code) if isinstance(code, int) else _nonsense()
    text = failure_text(message)
    return StoreError(f"unpack: {text}") if message.get("errno") else LayerError(text)


def _nonsense() -> LayerError:
    return LayerError("layer: its unpacker sent nonsense")


def failure_text(message: dict[str, int | str]) -> str:
    """The line that an ``error`` event tells: names and reasons may hold anything that an archive does."""
    name, reason = (_shown(str(message.get(field, ""))) for field in ("name", "reason"))
    return f"layer entry '{name}': {reason}" if name else f"layer: {reason}"


def _shown(text: str, limit: int = 600) -> str:
    """Bytes, each a character here, as a part of one line."""
    shown = printable(text.encode("latin-1", "replace").decode("utf-8", "backslashreplace"))
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def _ended(code: int) -> LayerError | StoreError:
    """The child ended without a word: by a signal, whose negative number ``code`` then is."""
    if code >= 0:
        return StoreError(f"unpack layer: the unpacking process ended with code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGSYS:
        return LayerError(f"layer: its unpacker was ended when it tried what it may not ({name})")
    if -code == signal.SIGXCPU:
        return LayerError("layer: unpacking it takes more time of the processor than any layer should")
    if -code in _FAULTS:
        return LayerError(f"layer: its unpacker crashed ({name})")
    hint = "the machine may be out of memory" if -code == signal.SIGKILL else None
    return StoreError(f"unpack layer: the unpacking process was ended by {name}", hint=hint)


async def _wait_for_end(channel: Channel) -> None:
    """The spawner ends an aborted child and closes the channel last: nobody writes to the directory any more."""
    channel.end()
    while channel.drain():
        await anyio.wait_readable(channel)
