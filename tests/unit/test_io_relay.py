"""The relay between terminals: when it comes back, and that no byte is lost or doubled over many calls."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
import tty
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crungo.io.fds import Fd, pipe
from crungo.io.relay import Relay
from tests.support.ends import feed, no_descriptor_left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crungo.io.relay import Stop

FAR = 1 << 62
LONG = 20_000  # milliseconds: longer than any test may take


class Terminals:
    """A program's terminal, whose master is read, and another, which is written to and shown."""

    def __init__(self, stack: ExitStack) -> None:
        self.master, self.program = (stack.enter_context(Fd(fd)) for fd in os.openpty())
        self.screen, self.shown = (stack.enter_context(Fd(fd)) for fd in os.openpty())
        for fd in (self.program, self.shown):
            tty.setraw(fd.fileno())
        self.master.set_nonblocking()
        self.shown.set_nonblocking()

    def relay(self) -> Relay:
        return Relay(self.master.fileno(), self.shown.fileno(), gather=False)


@pytest.fixture
def terminals() -> Iterator[Terminals]:
    with no_descriptor_left(), ExitStack() as stack:
        yield Terminals(stack)


def run(relay: Relay, *, deadline: int = FAR, nap: int = 0, flood: int = 0, others: tuple[Fd, ...] = ()) -> Stop:
    waited = [(fd.fileno(), select.POLLIN) for fd in others]
    return relay.run(deadline=deadline, nap=nap, flood=flood, others=waited)


def test_empty_when_the_source_has_no_more(terminals: Terminals) -> None:
    relay = terminals.relay()
    assert run(relay).why == "empty"
    os.write(terminals.program.fileno(), b"some text")
    stop = run(relay)
    assert (stop.why, bytes(stop.read), stop.error, relay.moved) == ("empty", b"some text", None, 9)
    assert os.read(terminals.screen.fileno(), 100) == b"some text"


def test_full_when_nobody_reads_and_the_rest_is_written_first(terminals: Terminals) -> None:
    data = bytes(range(256)) * 100
    thread = feed(terminals.program.detach(), [data])
    relay, seen, shown = terminals.relay(), b"", b""
    stops: list[str] = []
    while "source-failed" not in stops:  # EIO: the program has closed its terminal
        stop = run(relay)
        seen += stop.read
        stops.append(stop.why)
        if stop.why == "empty":
            select.select([terminals.master], [], [])
        while stop.why == "full" and select.select([terminals.screen], [], [], 0)[0]:
            shown += os.read(terminals.screen.fileno(), 5000)
    thread.join()
    assert "full" in stops
    assert seen == data
    while len(shown) < len(data):
        shown += os.read(terminals.screen.fileno(), 5000)
    assert (shown, relay.moved) == (data, len(data))


def test_turn_when_the_deadline_has_passed(terminals: Terminals) -> None:
    """One piece is moved all the same, so that a pump whose turns are over at once gets on."""
    os.write(terminals.program.fileno(), b"abc")
    relay = terminals.relay()
    assert run(relay, deadline=0).why == "turn"
    assert relay.moved == 3
    assert run(relay, deadline=0, nap=LONG).why == "empty"  # and does not wait


def test_again_when_there_is_no_room_to_show_more() -> None:
    with Fd(os.open("/dev/zero", os.O_RDONLY)) as zero, Fd(os.open("/dev/null", os.O_WRONLY)) as null:
        relay = Relay(zero.fileno(), null.fileno(), gather=False)
        counts = []
        for _ in range(3):
            stop = run(relay)
            assert stop.why == "again"
            counts.append(len(stop.read))
        assert relay.moved == sum(counts)


@pytest.mark.parametrize(("gather", "messages"), [(True, [b"onetwothree"]), (False, [b"one", b"two", b"three"])])
def test_gathered_reads_make_one_write(gather: bool, messages: list[bytes]) -> None:
    """Sockets that keep messages apart show what was read and written at a time."""
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(2) for end in socket.socketpair(type=socket.SOCK_SEQPACKET)]
        for end in ends:
            end.setblocking(False)
        program, source, sink, screen = ends
        for message in (b"one", b"two", b"three"):
            program.send(message)
        assert run(Relay(source.fileno(), sink.fileno(), gather=gather)).why == "empty"
        assert [screen.recv(100) for _ in messages] == messages
        with pytest.raises(BlockingIOError):
            screen.recv(100)


@pytest.mark.parametrize("end", ["source", "sink"])
def test_a_failed_end_says_why(terminals: Terminals, end: str) -> None:
    os.write(terminals.program.fileno(), b"abc")
    with Fd(os.open("/", os.O_RDONLY)) as directory:
        other = directory.fileno()
        relay = (
            Relay(other, terminals.shown.fileno(), gather=False)
            if end == "source"
            else Relay(terminals.master.fileno(), other, gather=False)
        )
        stop = run(relay)
    assert stop.why == f"{end}-failed"
    assert stop.error is not None
    assert stop.error.errno == (errno.EISDIR if end == "source" else errno.EBADF)


def test_waiting_ends_with_what_is_waited_for(terminals: Terminals) -> None:
    """The source is waited for: the text comes while the relay sleeps, or just before it would."""
    relay = terminals.relay()
    reader, writer = pipe()
    with reader, writer:

        def user() -> None:
            os.write(terminals.program.fileno(), b"abc")
            os.read(terminals.screen.fileno(), 3)
            os.write(writer.fileno(), b"x")

        thread = threading.Thread(target=user)
        thread.start()
        stop = run(relay, nap=LONG, others=(reader,))
        thread.join()
    assert (stop.why, bytes(stop.read)) == ("empty", b"abc")


def test_too_little_is_no_flood(terminals: Terminals) -> None:
    os.write(terminals.program.fileno(), b"abc")
    assert run(terminals.relay(), nap=LONG, flood=4).why == "empty"


def test_more_neighbours_than_fit_mean_no_waiting(terminals: Terminals) -> None:
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(8) for end in pipe()]
        assert run(terminals.relay(), nap=LONG, others=tuple(ends[::2])).why == "empty"


def test_a_signal_ends_the_waiting(terminals: Terminals) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    relay = terminals.relay()
    main = threading.get_ident()
    done = threading.Event()

    def knock() -> None:
        while not done.wait(0.01):  # again, should the first have come before the wait
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=knock)
    try:
        thread.start()
        began = time.monotonic()
        assert run(relay, nap=LONG).why == "empty"
        assert time.monotonic() - began < LONG / 1000
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert seen


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=60_000),
    pieces=st.lists(st.integers(1, 9000), min_size=1, max_size=6),
    reads=st.lists(st.integers(1, 9000), min_size=1, max_size=6),
    gather=st.booleans(),
)
def test_what_goes_in_comes_out(data: bytes, pieces: list[int], reads: list[int], gather: bool) -> None:
    """Whatever the sizes of writes and reads are, and wherever a call ends, in one process that never blocks."""
    with ExitStack() as stack:
        ends = Terminals(stack)
        for fd in (ends.program, ends.screen):
            fd.set_nonblocking()
        relay = Relay(ends.master.fileno(), ends.shown.fileno(), gather=gather)
        written, seen, shown, turn = 0, b"", b"", 0
        while len(shown) < len(data):
            if written < len(data):
                piece = data[written : written + pieces[turn % len(pieces)]]
                try:
                    written += os.write(ends.program.fileno(), piece)
                except BlockingIOError:
                    pass
            stop = run(relay, deadline=FAR if turn % 2 else 0)
            assert stop.error is None
            seen += stop.read
            try:
                shown += os.read(ends.screen.fileno(), reads[turn % len(reads)])
            except BlockingIOError:
                # The kernel's worker carries bytes across a terminal; with all of them on their way it is waited for.
                select.select([ends.screen, ends.master], [], [], 0.1)
            turn += 1
        assert seen == shown == data
        assert relay.moved == len(data)
