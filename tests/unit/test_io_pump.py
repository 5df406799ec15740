"""The pump: every byte, in order, whatever the ends are like, and nothing about them changed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crungo.io import endpoints
from crungo.io.fds import pipe, pipe_size
from crungo.io.pump import pump
from tests.support.ends import BACKENDS, Reader, feed, flags, no_descriptor_left, opened, pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kinds", [("pipe", "pipe"), ("pipe", "socket"), ("socket", "pipe"), ("socket", "socket")])
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40_000), max_size=25),
    size=st.sampled_from([1 << 12, 1 << 16]),
    read=st.sampled_from([1000, 1 << 16]),
    tapped=st.booleans(),
    nonblocking=st.booleans(),
)
def test_every_byte_arrives(  # noqa: PLR0917 - hypothesis and pytest pass them by name
    backend: str,
    kinds: tuple[str, str],
    lengths: list[int],
    size: int,
    read: int,
    tapped: bool,
    nonblocking: bool,
) -> None:
    """``kinds`` of the source and of the sink; ``size`` of their pipes, and what one read of the sink takes."""
    noise = random.Random(repr(lengths))
    chunks = [noise.randbytes(n) for n in lengths]
    expected = b"".join(chunks)
    source, feeder = pair(kinds[0])
    drain, sink = pair(kinds[1])
    for fd in (source, sink):
        os.set_blocking(fd, not nonblocking)
        if pipe_size(fd):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    before = flags(source), flags(sink)
    seen = bytearray()
    writer, reader = feed(feeder, chunks), Reader(drain, read)
    result = anyio.run(lambda: pump(source, sink, tap=seen.extend if tapped else None), backend=backend)
    assert (flags(source), flags(sink)) == before
    os.close(sink)
    writer.join()
    reader.join()
    os.close(source)
    assert reader.data == expected
    assert (result.moved, result.ending, result.error) == (len(expected), "eof", None)
    if tapped:
        assert bytes(seen) == expected


@pytest.mark.anyio
async def test_files_both_ways(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_001)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        assert (await pump(source.fileno(), sink.fileno())).moved == len(data)
    assert (tmp_path / "out").read_bytes() == data
    for mode in ("wb", "ab"):  # an O_APPEND file cannot be spliced to
        end, feeder = pair("pipe")
        thread = feed(feeder, [data])
        with (tmp_path / "spliced").open(mode) as sink:
            assert (await pump(end, sink.fileno())).ending == "eof"
        thread.join()
        os.close(end)
    assert (tmp_path / "spliced").read_bytes() == data * 2


@pytest.mark.anyio
async def test_the_offset_of_a_file_is_shared(tmp_path: Path) -> None:
    """What follows in a shell script writes behind us, not over us."""
    with (tmp_path / "out").open("wb", buffering=0) as sink:
        for text in (b"one\n", b"two\n"):
            end, feeder = pair("pipe")
            feed(feeder, [text]).join()
            await pump(end, sink.fileno())
            os.close(end)
        sink.write(b"three\n")
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.anyio
async def test_devices_and_closed_descriptors() -> None:
    reader, writer = pipe()
    with reader, writer, opened("/dev/null", os.O_RDWR) as null:
        assert (await pump(null.fileno(), writer.fileno())).ending == "eof"
        closed = os.dup(null.fileno())
        os.close(closed)
        assert (await pump(closed, writer.fileno())).ending == "eof"
        feed(os.dup(writer.fileno()), [b"x" * 1000]).join()
        assert (await pump(reader.fileno(), closed)).ending == "sink-gone"
        feed(writer.detach(), [b"x" * 1000]).join()
        result = await pump(reader.fileno(), null.fileno())
    assert result.ending == "eof"
    assert result.moved in (1000, 2000)  # splice notices a bad sink before it takes anything


@pytest.mark.anyio
async def test_a_directory_and_a_full_disk_say_why() -> None:
    with opened("/", os.O_RDONLY) as directory, opened("/dev/null", os.O_WRONLY) as null:
        result = await pump(directory.fileno(), null.fileno())
    assert result.ending == "source-failed"
    assert result.error is not None
    assert result.error.errno == errno.EISDIR
    reader, writer = pipe()
    feed(writer.detach(), [b"x" * 100_000])
    with reader, opened("/dev/full", os.O_WRONLY) as full:
        result = await pump(reader.fileno(), full.fileno())
    assert result.ending == "sink-failed"
    assert result.error is not None
    assert result.error.errno == errno.ENOSPC


@pytest.mark.anyio
async def test_fallbacks_when_splice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.EPERM, "forbidden by a sandbox")

    monkeypatch.setattr(os, "splice", refused)
    data = random.Random(3).randbytes(500_000)
    source, feeder = pair("pipe")
    out, sink = pair("pipe")
    thread, reader = feed(feeder, [data]), Reader(out)
    assert (await pump(source, sink)).ending == "eof"
    os.close(sink)
    os.close(source)
    thread.join()
    reader.join()
    assert reader.data == data


def test_a_default_timeout_of_sockets_does_no_harm() -> None:
    """socket.setdefaulttimeout makes every new socket object set O_NONBLOCK, also on a description that is shared."""
    left, right = socket.socketpair()
    socket.setdefaulttimeout(5)
    try:
        with endpoints.Sink(left.fileno()) as sink:
            assert os.get_blocking(left.fileno())
            assert sink.write(memoryview(b"x")) == 1
    finally:
        socket.setdefaulttimeout(None)
        left.close()
        right.close()
