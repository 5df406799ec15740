"""Streams over descriptors: anyio's contract, on pipes and on a PTY."""

from __future__ import annotations

import os
import socket
import termios
import tty
from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint

from crungo.errors import ContainerError, UsageError
from crungo.io.fds import Fd, pipe
from crungo.io.pty import Size, eof_characters, get_size, receive_master, recv_fds, set_size
from crungo.io.streams import FdReceiveStream, FdSendStream, FdStream

pytestmark = pytest.mark.anyio


def streams() -> tuple[FdReceiveStream, FdSendStream]:
    reader, writer = pipe()
    return FdReceiveStream(reader), FdSendStream(writer)


async def test_bytes_backpressure_and_the_end() -> None:
    receiver, sender = streams()
    data = os.urandom(1_000_000)

    async def send() -> None:
        async with sender:
            await sender.send(data)
            await sender.send(b"")

    got = bytearray()
    async with anyio.create_task_group() as group, receiver:
        group.start_soon(send)
        async for chunk in receiver:
            assert chunk
            got += chunk
        with pytest.raises(anyio.EndOfStream):
            await receiver.receive()
    assert bytes(got) == data


async def test_many_that_close_at_once_leave_the_loop_to_others() -> None:
    """Each lets a program run, and the loop shares its processors with those of a thousand."""
    pairs = [streams() for _ in range(50)]
    seen: list[int] = []
    go = anyio.Event()

    async def close(sender: FdSendStream) -> None:
        await go.wait()
        await sender.aclose()

    async def watch() -> None:
        while not seen or seen[-1]:
            seen.append(sum(not sender._fd.closed for _, sender in pairs))
            await checkpoint()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _, sender in pairs:
                group.start_soon(close, sender)
            group.start_soon(watch)
            await checkpoint()
            go.set()
    assert max(before - after for before, after in pairwise(seen)) <= 2  # a loop may run the watch before or after
    for receiver, _ in pairs:
        await receiver.aclose()


async def test_who_is_cancelled_while_others_close_has_closed() -> None:
    pairs = [streams() for _ in range(5)]
    async with anyio.create_task_group() as group:
        for _, sender in pairs:
            group.start_soon(sender.aclose)
        await checkpoint()
        group.cancel_scope.cancel()
    for receiver, sender in pairs:
        with pytest.raises(anyio.EndOfStream), anyio.fail_after(5):
            await receiver.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await sender.send(b"x")
        await receiver.aclose()


async def test_max_bytes() -> None:
    receiver, sender = streams()
    async with receiver, sender:
        await sender.send(b"abcdef")
        assert await receiver.receive(2) == b"ab"
        assert await receiver.receive(1 << 30) == b"cdef"
        with pytest.raises(ValueError, match="positive"):
            await receiver.receive(0)


async def test_two_tasks_conflict() -> None:
    receiver, sender = streams()
    async with receiver, sender, anyio.create_task_group() as group:
        group.start_soon(receiver.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await receiver.receive()
        await sender.send(b"x")


async def test_closing_wakes_and_refuses() -> None:
    receiver, sender = streams()
    outcomes: list[str] = []

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await receiver.receive()
        outcomes.append("woken")

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await receiver.aclose()
    assert outcomes == ["woken"]
    await receiver.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await receiver.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await sender.send(b"x")
    await sender.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await sender.send(b"")


async def test_cancelled_receive_takes_nothing() -> None:
    receiver, sender = streams()
    async with receiver, sender:
        await sender.send(b"kept")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await receiver.receive()
        assert scope.cancelled_caught
        assert await receiver.receive() == b"kept"


def test_close_without_a_loop() -> None:
    receiver, sender = streams()
    receiver.close()
    sender.close()
    with pytest.raises(OSError, match="closed"):
        sender.fileno()


async def test_pty_is_duplex_and_ends_with_eio() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    async with FdStream(master) as stream:
        await stream.send(b"typed")
        assert os.read(slave, 100) == b"typed"
        os.write(slave, b"a" * 3000)
        os.write(slave, b"b" * 3000)
        os.close(slave)
        got = b""
        async for chunk in stream:
            got += chunk
        assert got == b"a" * 3000 + b"b" * 3000


async def test_send_eof_types_the_terminals_own_character() -> None:
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[6][termios.VEOF] = b"\x18"
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    assert eof_characters(master, at_line_start=False) == b"\x18\x18"
    async with FdStream(master) as stream:
        await stream.send(b"line\n")
        await stream.send_eof()
        assert os.read(slave, 100) == b"line\n"
        assert os.read(slave, 100) == b""
        tty.setraw(slave)
        await stream.send_eof()
        assert eof_characters(slave, at_line_start=True) == b""
    os.close(slave)
    with Fd(os.open("/dev/null", os.O_RDONLY)) as null:
        assert eof_characters(null.fileno(), at_line_start=True) == b""


def test_window_size() -> None:
    master, slave = os.openpty()
    set_size(master, Size(columns=132, rows=43))
    assert get_size(slave) == (132, 43)
    for wrong in ((-1, 1), (1, 65536)):
        with pytest.raises(UsageError, match="between 0 and 65535"):
            set_size(master, wrong)
    os.close(slave)
    set_size(master, (80, 24))
    os.close(master)
    set_size(master, (80, 24))  # it may vanish at any time


async def test_a_master_is_received() -> None:
    left, right = socket.socketpair()
    master, slave = os.openpty()
    with left, right:
        socket.send_fds(left, [b"/dev/pts/ptmx"], [master])
        with await receive_master(right) as received:
            assert os.path.samestat(os.fstat(received.fileno()), os.fstat(master))
            assert not os.get_inheritable(received.fileno())
            assert not os.get_blocking(received.fileno())
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("what", ["nothing", "text", "slave", "file", "several", "many"])
async def test_anything_else_is_refused_and_closed(what: str) -> None:
    left, right = socket.socketpair()
    master, slave = os.openpty()
    with Fd(os.open("/dev/null", os.O_RDONLY)) as null, left, right:
        before = len(os.listdir("/proc/self/fd"))
        fds = {"slave": [slave], "file": [null.fileno()], "several": [master, master], "many": [master] * 100}
        if what in fds:
            socket.send_fds(left, [b"x"], fds[what])
        elif what == "text":
            left.send(b"x")
        else:
            left.shutdown(socket.SHUT_WR)
        with pytest.raises(ContainerError, match="receiving"):
            await receive_master(right)
        await checkpoint()
        assert len(os.listdir("/proc/self/fd")) == before
    os.close(master)
    os.close(slave)


async def test_recv_fds_waits_and_takes_several() -> None:
    left, right = socket.socketpair()
    results: list[tuple[bytes, list[Fd]]] = []

    async def receive() -> None:
        results.append(await recv_fds(right, 3))

    with left, right, Fd(os.open("/dev/null", os.O_RDONLY)) as null:
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            socket.send_fds(left, [b"hello"], [null.fileno()] * 3)
        ((data, fds),) = results
        assert data == b"hello"
        assert len(fds) == 3
        for fd in fds:
            fd.close()
