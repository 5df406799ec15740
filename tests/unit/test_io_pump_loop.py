"""How a pump ends, and how it shares its loop: nobody waits for it, and it leaves nothing behind."""

from __future__ import annotations

import functools
import itertools
import os
import random
import threading
import tty
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from crungo.io import endpoints
from crungo.io import pump as pumping
from crungo.io.fds import Fd, pipe
from crungo.io.pump import Pump, pump, together
from tests.support.ends import BACKENDS, Reader, feed, flags, no_descriptor_left, opened, pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crungo.io.pump import PumpResult

TURNS = 20
PATIENCE = 30  # seconds: a pump that keeps the loop to itself never gives a turn


async def take_turns() -> None:
    """Return when the loop has come round to this task a number of times."""
    for _ in range(TURNS):
        await anyio.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    with no_descriptor_left():
        yield


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


@pytest.mark.anyio
async def test_a_flood_on_a_terminal_gives_others_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a PTY's master to another PTY, both never at rest: few pieces move from turn to turn."""
    monkeypatch.setattr(pumping, "_SLICE", 0)  # over with the first piece
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
    assert most <= 2  # a loop is free to run the pump last in one turn and first in the next


@pytest.fixture
def endless_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slice for all, and waits without the loop that are longer than any test may take."""
    monkeypatch.setattr(pumping, "_SLICE", 10**15)
    monkeypatch.setattr(pumping, "_NAP", 20_000)


@pytest.mark.anyio
@pytest.mark.usefixtures("endless_naps")
async def test_a_flood_on_a_terminal_is_waited_for_without_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    master, program = os.openpty()
    screen, shown = os.openpty()
    tty.setraw(shown)
    waits = 0

    async def count(wait: Callable[[int], Any], fd: int) -> None:
        nonlocal waits
        waits += 1
        await wait(fd)

    monkeypatch.setattr(anyio, "wait_readable", functools.partial(count, anyio.wait_readable))
    monkeypatch.setattr(anyio, "wait_writable", functools.partial(count, anyio.wait_writable))

    def user() -> None:
        for _ in range(20):  # it comes to rest each time, in the middle of its slice
            os.write(program, bytes(3000))
            left = 3000
            while left:
                left -= len(os.read(screen, left))
        os.close(program)

    thread = threading.Thread(target=user)
    with Fd(master).set_nonblocking(), Fd(shown), Fd(screen):
        thread.start()
        result = await pump(master, shown)
    thread.join()
    assert result.moved == 60_000
    assert waits < 10  # for the first bytes, whatever their pieces are


@pytest.mark.anyio
@pytest.mark.usefixtures("endless_naps")
async def test_what_is_typed_is_passed_on_while_a_flood_pauses() -> None:
    """The output's pump waits without the loop: a key that comes meanwhile must not wait with it."""
    master, program = (Fd(fd) for fd in os.openpty())
    screen, shown = (Fd(fd) for fd in os.openpty())
    keys, keyboard = pipe()
    tty.setraw(program.fileno())
    tty.setraw(shown.fileno())
    typed = []

    def user() -> None:
        with program, keyboard:
            left = 3000
            os.write(program.fileno(), bytes(left))
            while left:
                left -= len(os.read(screen.fileno(), left))
            for _ in range(3):
                os.write(keyboard.fileno(), b"x")
                typed.append(os.read(program.fileno(), 1))

    with master.set_nonblocking(), screen, shown, keys:
        output = Pump(master.fileno(), shown.fileno())
        typist = Pump(keys.fileno(), master.fileno())
        together(output, typist)
        thread = threading.Thread(target=user)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(typist.run)
                group.start_soon(output.run)
                thread.start()
        thread.join()
    assert typed == [b"x"] * 3


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
