"""Descriptors: closed once, classified rightly, lent ones never changed."""

from __future__ import annotations

import errno
import os
import pty
import socket
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

from crungo.io.fds import Fd, Kind, is_hung_up, is_pty_master, kind_of, pipe, pipe_size, reopen, widen

if TYPE_CHECKING:
    from pathlib import Path


def test_close_is_idempotent_and_never_closes_a_reused_number() -> None:
    reader, writer = pipe()
    number = reader.fileno()
    reader.close()
    with open("/dev/null", "rb") as reused:  # takes the number that was just freed
        assert reused.fileno() == number
        reader.close()
        assert os.fstat(reused.fileno())
    assert reader.closed
    with pytest.raises(OSError, match="closed") as caught:
        reader.fileno()
    assert caught.value.errno == errno.EBADF
    writer.close()


def test_detach_and_dup() -> None:
    reader, writer = pipe()
    with reader.dup() as copy:
        assert os.path.sameopenfile(copy.fileno(), reader.fileno())
        assert not os.get_inheritable(copy.fileno())
    number = reader.detach()
    assert reader.closed
    os.close(number)
    writer.close()


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a descriptor"):
        Fd(-1)


def test_a_forgotten_descriptor_warns_and_is_closed() -> None:
    reader, writer = pipe()
    number = reader.fileno()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del reader
    assert [w.category for w in caught] == [ResourceWarning]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
    writer.close()


def test_kinds(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    master, slave = os.openpty()
    left, right = socket.socketpair()
    reader, writer = pipe()
    event = os.eventfd(0)
    with left, right, reader, writer, file.open("rb") as opened, open("/dev/null", "rb") as null:
        assert kind_of(reader.fileno()) is kind_of(writer.fileno()) is Kind.PIPE
        assert kind_of(left.fileno()) is Kind.SOCKET
        assert kind_of(master) is kind_of(slave) is Kind.TERMINAL
        assert kind_of(opened.fileno()) is kind_of(null.fileno()) is Kind.READY
        assert kind_of(event) is Kind.OTHER
        assert is_pty_master(master)
        assert not is_pty_master(slave)
        assert not is_pty_master(null.fileno())
        assert not is_hung_up(slave)
        os.close(master)
        assert is_hung_up(slave)
        assert kind_of(slave) is Kind.TERMINAL  # although isatty(3) says no by now
    for fd in (slave, event):
        os.close(fd)
    assert kind_of(slave) is Kind.CLOSED
    assert not is_hung_up(slave)


def test_reopen_gives_a_description_of_its_own() -> None:
    master, slave = os.openpty()
    reader, writer = pipe()
    for fd, access in ((reader.fileno(), os.O_RDONLY), (writer.fileno(), os.O_WRONLY), (slave, os.O_RDONLY)):
        new = reopen(fd, kind_of(fd), access)
        assert new is not None
        with new:
            assert not os.get_blocking(new.fileno())
            assert os.get_blocking(fd)
            assert not os.get_inheritable(new.fileno())
    assert reopen(master, Kind.TERMINAL, os.O_RDONLY) is None  # it would be a new pair
    reader.close()
    writer.close()
    os.close(master)
    assert reopen(slave, Kind.TERMINAL, os.O_RDONLY) is None  # EIO
    os.close(slave)


def test_reopen_of_a_fifo_without_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with Fd(os.open(tmp_path / "fifo", os.O_WRONLY)) as writer:
        os.close(reader)
        assert reopen(writer.fileno(), Kind.PIPE, os.O_WRONLY) is None  # ENXIO


def test_widen_only_grows() -> None:
    reader, writer = pipe()
    with reader, writer:
        assert widen(reader.fileno(), 1 << 18) == pipe_size(writer.fileno()) == 1 << 18
        assert widen(reader.fileno(), 4096) == 1 << 18
        assert widen(reader.fileno(), 1 << 40) == 1 << 18  # refused, and fine
    with open("/dev/null", "rb") as null:
        assert widen(null.fileno(), 1 << 18) == 0


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2), (0, 2)])
def test_standard_descriptors_are_opened(closed: tuple[int, ...]) -> None:
    program = (
        "import os\n"
        f"for fd in {closed}: os.close(fd)\n"
        "from crungo.io.fds import ensure_standard_fds\n"
        "ensure_standard_fds()\n"
        "ok = all(os.path.samestat(os.fstat(fd), os.stat('/dev/null'))"
        f" and os.get_inheritable(fd) for fd in {closed})\n"
        "os._exit(0 if ok else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_module_is_light() -> None:
    """A helper process imports it; it must not draw in an event loop."""
    program = "import sys, crungo.io.fds; assert not {'anyio', 'asyncio', 'socket'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pty_module_agrees() -> None:
    master, slave = pty.openpty()
    assert is_pty_master(master)
    os.close(slave)
    os.close(master)
