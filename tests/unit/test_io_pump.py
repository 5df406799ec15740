"""The pump: every byte, in order, whatever the ends are like, and nothing about them changed."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import socket
import threading
import time
import tty
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from crungo.io import endpoints
from crungo.io import pump as pumping
from crungo.io.fds import Fd, pipe, pipe_size
from crungo.io.pump import Pump, pump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crungo.io.pump import PumpResult

BACKENDS = ["asyncio", "trio"]


def flags(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def opened(path: str, access: int) -> Fd:
    return Fd(os.open(path, access | os.O_CLOEXEC))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    before = open_fds()
    yield
    # A loop's own descriptors outlive the test with the asyncio runner of the plugin, so that growth is what counts.
    assert len(open_fds()) <= len(before) + 4


def feed(fd: int, chunks: list[bytes], pause: float = 0) -> threading.Thread:
    """Write ``chunks`` to ``fd`` from a thread, as another process would, then close it."""

    def run() -> None:
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
                if pause:
                    time.sleep(pause)
        except BrokenPipeError:
            pass
        finally:
            os.close(fd)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


class Reader(threading.Thread):
    """Reads ``fd`` to its end from a thread, ``size`` bytes at a time."""

    def __init__(self, fd: int, size: int = 65536, pause: float = 0) -> None:
        super().__init__()
        self.fd, self.size, self.pause = fd, size, pause
        self.data = b""
        self.start()

    def run(self) -> None:
        parts = []
        while True:
            try:
                part = os.read(self.fd, self.size)
            except OSError:  # a PTY's end
                break
            if not part:
                break
            parts.append(part)
            if self.pause:
                time.sleep(self.pause)
        os.close(self.fd)
        self.data = b"".join(parts)


def pair(kind: str) -> tuple[int, int]:
    """(read end, write end), blocking, of a pipe or socket."""
    if kind == "pipe":
        return os.pipe2(os.O_CLOEXEC)
    left, right = socket.socketpair()
    return left.detach(), right.detach()


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
@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_reader_that_leaves_ends_the_pump(kind: str, tapped: bool) -> None:
    source, feeder = pair("pipe")
    drain, sink = pair(kind)
    thread = feed(feeder, [b"y\n" * 50_000] * 40)

    def leave() -> None:
        os.read(drain, 2)
        os.close(drain)

    leaver = threading.Thread(target=leave)
    leaver.start()
    with anyio.fail_after(10):
        result = await pump(source, sink, tap=(lambda _: None) if tapped else None)
    assert result.ending == "sink-gone"
    os.close(source)  # and now the program at the other end gets its EPIPE
    leaver.join()
    thread.join()
    os.close(sink)


TURNS = 20
PATIENCE = 30  # seconds: a pump that keeps the loop to itself never gives a turn


async def take_turns() -> None:
    """Return when the loop has come round to this task a number of times."""
    for _ in range(TURNS):
        await anyio.sleep(0.005)


@pytest.mark.anyio
@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
async def test_a_stopped_reader_does_not_stop_the_loop(
    kind: str, polled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sink is blocking and full; with ``polled``, it cannot be opened anew either."""
    if polled:
        monkeypatch.setattr(endpoints, "reopen", lambda fd, kind, access: None)
    drain, sink = os.openpty() if kind == "terminal" else pair(kind)
    source, feeder = pair("pipe")
    thread = feed(feeder, [bytes(100_000)])
    before = flags(sink)
    ended = False

    async def run() -> None:
        nonlocal ended
        await pump(source, sink, tap=lambda _: None)
        ended = True

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await take_turns()
            group.cancel_scope.cancel()
    assert not ended or kind == "socket"  # a socket pair may hold it all
    assert flags(sink) == before
    os.close(source)
    thread.join()
    os.close(drain)
    os.close(sink)


@pytest.mark.anyio
async def test_an_endless_source_leaves_the_loop_to_others() -> None:
    with opened("/dev/zero", os.O_RDONLY) as zero, opened("/dev/null", os.O_WRONLY) as null:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(pump, zero.fileno(), null.fileno())
                await take_turns()
                group.cancel_scope.cancel()


class SteppingClock:
    """Each look at the clock finds it a quarter of a slice later."""

    def __init__(self) -> None:
        self._now = 0

    def perf_counter_ns(self) -> int:
        self._now += pumping._SLICE // 4
        return self._now


@pytest.mark.anyio
async def test_a_flood_on_a_terminal_gives_others_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a PTY's master to another PTY, both never at rest: few pieces move from turn to turn."""
    monkeypatch.setattr(pumping, "time", SteppingClock())
    master, program = os.openpty()
    screen, shown = os.openpty()
    tty.setraw(shown)
    flood = feed(program, [bytes(100) * 30_000])
    reader = Reader(screen)
    pieces = 0
    seen = []

    def count(_: memoryview) -> None:
        nonlocal pieces
        pieces += 1

    async def watch() -> None:
        while True:
            seen.append(pieces)
            await checkpoint()

    with Fd(master).set_nonblocking(), Fd(shown):
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            result = await pump(master, shown, tap=count)
            group.cancel_scope.cancel()
    flood.join()
    reader.join()
    assert (result.ending, result.moved, len(reader.data)) == ("eof", 3_000_000, 3_000_000)
    most = max(after - before for before, after in itertools.pairwise([*seen, pieces]))
    assert most <= 2 * 4  # a loop is free to run the pump last in one turn and first in the next


@pytest.mark.anyio
@pytest.mark.parametrize("tapped", [False, True])
async def test_finish_takes_what_is_there_and_no_more(tapped: bool) -> None:
    """The other end stays open, as by a process left in the background."""
    reader, writer = pipe()
    out, sink = pipe()
    results: list[PumpResult] = []
    with reader, writer, out, sink:
        running = Pump(reader.fileno(), sink.fileno(), tap=(lambda _: None) if tapped else None)

        async def run() -> None:
            results.append(await running.run())

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                for _ in range(5):
                    await checkpoint()
                os.write(writer.fileno(), b"last words")
                running.finish()
        assert [(r.ending, r.moved) for r in results] == [("finished", 10)]
        assert os.read(out.fileno(), 100) == b"last words"
        os.write(writer.fileno(), b"more")
        late = Pump(reader.fileno(), sink.fileno())
        late.finish()
        assert (await late.run()).ending == "finished"
        assert os.read(out.fileno(), 100) == b"more"


@pytest.mark.anyio
async def test_cancelling_leaves_the_descriptors_usable() -> None:
    reader, writer = pipe()
    out, sink = pipe()
    with reader, writer, out, sink:
        for tap in (None, lambda _: None):
            with anyio.move_on_after(0.02) as scope:
                await pump(reader.fileno(), sink.fileno(), tap=tap)
            assert scope.cancelled_caught
            os.write(writer.fileno(), b"still here")
            assert os.read(reader.fileno(), 100) == b"still here"


@pytest.mark.anyio
async def test_a_pty_master_ends_with_its_last_slave() -> None:
    """Everything written before the last slave was closed comes out, then the end (EIO)."""
    master, slave = os.openpty()
    data = random.Random(2).randbytes(200_000).translate(None, b"\n")
    out, sink = pipe()
    reader = Reader(out.detach())
    thread = feed(slave, [data])
    with Fd(master).set_nonblocking(), sink:
        result = await pump(master, sink.fileno(), tap=lambda _: None)
    thread.join()
    reader.join()
    assert (result.ending, result.moved) == ("eof", len(data))
    assert reader.data == data


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


@pytest.mark.anyio
async def test_pumps_of_one_loop_do_not_mix_their_bytes() -> None:
    """All copy through the same buffer, and each has more to write than its slow reader takes at once."""
    ends = [(*pair("pipe"), *pair("pipe")) for _ in range(3)]
    texts = [bytes([65 + n]) * 400_000 for n in range(3)]
    feeders = [feed(feeder, [text]) for (_, feeder, _, _), text in zip(ends, texts, strict=True)]
    readers = [Reader(out, 20_000, pause=0.001) for _, _, out, _ in ends]

    async def run(source: int, sink: int) -> None:
        await pump(source, sink, tap=lambda _: None)
        os.close(sink)
        os.close(source)

    async with anyio.create_task_group() as group:
        for source, _, _, sink in ends:
            group.start_soon(run, source, sink)
    for thread in (*feeders, *readers):
        thread.join()
    assert [reader.data == text for reader, text in zip(readers, texts, strict=True)] == [True] * 3


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_off_the_main_thread(backend: str) -> None:
    """Two loops in two threads: the shared buffer is one per thread."""
    failures: list[str] = []

    def work(seed: int) -> Callable[[], None]:
        def run() -> None:
            data = random.Random(seed).randbytes(2_000_000)
            source, feeder = pair("pipe")
            out, sink = pair("pipe")
            thread, reader = feed(feeder, [data]), Reader(out, 1 << 14)
            anyio.run(lambda: pump(source, sink, tap=lambda _: None), backend=backend)
            os.close(sink)
            os.close(source)
            thread.join()
            reader.join()
            if reader.data != data:
                failures.append(f"thread {seed}")

        return run

    threads = [threading.Thread(target=work(seed)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
