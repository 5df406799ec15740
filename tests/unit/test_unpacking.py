"""What the engine makes of the words of a process that unpacks, which may be an archive's."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from crungo.errors import LayerError, StoreError
from crungo.image.layers import Unpacked
from crungo.runtime import wire
from crungo.runtime.requests import Channel
from crungo.runtime.unpacking import ChannelUnpacking

if TYPE_CHECKING:
    from crungo.runtime.requests import SpawnerProcess

pytestmark = pytest.mark.anyio

DIGEST = "sha256:" + "a" * 64
RIGHT: wire.Text = {"event": "unpacked", "diff_id": DIGEST, "unpacked_size": 1, "entries": 2, "opaque": 0}


async def outcome(packet: bytes) -> object:
    """What ``finish`` returns or raises when a child of a complete blob has said this."""
    ours, theirs = wire.pair()
    with closing(ours), closing(theirs):
        theirs.send(packet)
        channel = Channel(ours, cast("SpawnerProcess", None))
        with anyio.fail_after(5):
            try:
                return await ChannelUnpacking(channel, complete=True).finish(1)
            except (LayerError, StoreError) as error:
                return error


async def test_the_right_words() -> None:
    told = Unpacked(diff_id=DIGEST, unpacked_size=1, entries=2, opaque=False)
    assert await outcome(wire.encode_text(RIGHT)) == told


@pytest.mark.parametrize(
    "packet",
    [
        b"\0",
        b"x" * 50_000,
        wire.encode_text(RIGHT)[:-1],
        wire.encode_text({**RIGHT, "entries": -1}),
        wire.encode_text({**RIGHT, "entries": "2"}),
        wire.encode_text({**RIGHT, "diff_id": "sha256:a"}),
        wire.encode_text({"event": "unpacked"}),
        wire.encode_text({"event": "ended"}),
        wire.encode_text({"event": "ended", "code": "text"}),
    ],
)
async def test_nonsense(packet: bytes) -> None:
    error = await outcome(packet)
    assert isinstance(error, LayerError)
    assert error.message == "layer: its unpacker sent nonsense"


@pytest.mark.parametrize("code", [-(1 << 63), (1 << 63) - 1])
async def test_an_end_that_cannot_be(code: int) -> None:
    assert isinstance(await outcome(wire.encode_text({"event": "ended", "code": code})), StoreError)


async def test_the_limit_of_processor_time() -> None:
    error = await outcome(wire.encode_text({"event": "ended", "code": -signal.SIGXCPU}))
    assert isinstance(error, LayerError)
    assert error.message == "layer: unpacking it takes more time of the processor than any layer should"
