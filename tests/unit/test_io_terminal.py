"""Raw mode is undone on every way out; sizes and signals arrive as events."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from crungo.errors import NotRunning, UsageError
from crungo.io.fds import Fd
from crungo.io.pty import set_size
from crungo.io.sigmask import forwardable_signals
from crungo.io.signals import forward_signals, receive_signals
from crungo.io.terminal import RawTerminal, is_terminal, terminal_size
from crungo.io.winch import window_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    try:
        yield master, slave
    finally:
        for fd in (master, slave):
            try:
                os.close(fd)
            except OSError:
                continue


def test_raw_inside_and_restored_after() -> None:
    with terminal() as (master, slave):
        saved = termios.tcgetattr(slave)
        with RawTerminal(slave) as raw:
            now = termios.tcgetattr(slave)
            assert not now[3] & (termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
            assert not now[1] & termios.OPOST
            assert not now[0] & (termios.ICRNL | termios.IXON)
            assert now[6][termios.VMIN] in (1, b"\x01")
            os.set_blocking(slave, False)  # as a careless program would
            raw.modes.feed(b"\x1b[?1049h\x1b[?25l")
        assert termios.tcgetattr(slave) == saved
        assert os.get_blocking(slave)
        assert os.read(master, 100) == b"\x1b[?25h\x1b[?1049l\x1b[m"


def test_an_error_restores_and_passes() -> None:
    with terminal() as (_, slave):
        saved = termios.tcgetattr(slave)
        with pytest.raises(ZeroDivisionError), RawTerminal(slave) as raw:  # noqa: PT012 - the block is the subject
            raw.restore()
            assert termios.tcgetattr(slave) == saved
            raise ZeroDivisionError
        assert termios.tcgetattr(slave) == saved


def test_a_vanished_terminal_is_no_error() -> None:
    with terminal() as (master, slave), RawTerminal(slave) as raw:
        raw.modes.feed(b"\x1b[?25l")
        os.close(master)
    with terminal() as (_, slave), RawTerminal(slave):
        os.close(slave)


def test_what_is_no_terminal() -> None:
    with Fd(os.open("/dev/null", os.O_RDONLY)) as null:
        assert not is_terminal(null.fileno())
        assert terminal_size(null.fileno()) is None
        with pytest.raises(UsageError, match="not a terminal"):
            RawTerminal(null.fileno()).__enter__()
    assert not is_terminal(null_number())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def null_number() -> int:
    """The number of a descriptor that is closed."""
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


def test_a_stopped_terminal_does_not_hold_up() -> None:
    """Ctrl-S, and then the end of the container: restoring must not wait for output to drain."""
    with terminal() as (_, slave):
        saved = termios.tcgetattr(slave)
        with RawTerminal(slave) as raw:
            raw.modes.feed(b"\x1b[?25l")
            termios.tcflow(slave, termios.TCOOFF)
        assert termios.tcgetattr(slave) == saved


PROGRAM = """
import os, signal, sys
from crungo.io.terminal import RawTerminal
raw = RawTerminal(0)
raw.__enter__()
raw.modes.feed(b"\\x1b[?25l")
os.write(2, b"ready\\n")
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("signal.pause()", -signal.SIGTERM),
        ("signal.pause()", -signal.SIGHUP),
        ("signal.pause()", -signal.SIGQUIT),
        ("import asyncio; asyncio.run(asyncio.sleep(100))", -signal.SIGTERM),
        ("import trio; trio.run(trio.sleep_forever)", -signal.SIGHUP),
        ("sys.exit(3)", 3),  # the block is never left: the end of the interpreter has to do
        ("raise SystemExit(4)", 4),
    ],
)
def test_deadly_signals_and_the_end_of_the_interpreter(ending: str, status: int) -> None:
    with terminal() as (master, slave):
        saved = termios.tcgetattr(slave)
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(ending=ending)], stdin=slave, stdout=slave, stderr=subprocess.PIPE
        )
        assert child.stderr is not None
        assert child.stderr.readline() == b"ready\n"
        if status < 0:
            child.send_signal(-status)
        _, errors = child.communicate(timeout=20)
        assert child.returncode == status, errors
        assert termios.tcgetattr(slave) == saved
        assert os.read(master, 100) == b"\x1b[?25h\x1b[m"


def test_a_forked_child_leaves_the_terminal_alone() -> None:
    with terminal() as (_, slave), RawTerminal(slave) as raw:
        now = termios.tcgetattr(slave)
        pid = os.fork()
        if pid == 0:
            raw.restore()
            os._exit(0)
        os.waitpid(pid, 0)
        assert termios.tcgetattr(slave) == now


def test_in_the_background_the_terminal_is_the_shells() -> None:
    """The program's group is not in the foreground when it ends: the settings of the one that is stay."""
    pid, master = pty.fork()
    if pid == 0:  # leads a session with this terminal
        code = 1
        try:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            raw = RawTerminal(0).__enter__()
            now = termios.tcgetattr(0)
            other = os.fork()
            if other == 0:
                os.setpgid(0, 0)
                os.tcsetpgrp(0, os.getpgrp())
                os._exit(0)
            os.waitpid(other, 0)
            raw.restore()
            code = 0 if termios.tcgetattr(0) == now else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.anyio
async def test_sizes_are_events_and_bursts_become_one() -> None:
    with terminal() as (master, slave):
        set_size(master, (80, 24))
        seen: list[tuple[int, int]] = []
        with window_sizes(slave) as sizes, anyio.fail_after(5):
            set_size(master, (81, 24))
            for columns in range(100, 110):
                set_size(master, (columns, 40))
                os.kill(os.getpid(), signal.SIGWINCH)
            async for size in sizes:
                seen.append(size)
                if len(seen) == 1:
                    set_size(master, (120, 50))
                    os.kill(os.getpid(), signal.SIGWINCH)
                if size == (120, 50):
                    break
            assert seen == [(109, 40), (120, 50)]
            set_size(master, (0, 0))
            os.kill(os.getpid(), signal.SIGWINCH)
            set_size(master, (120, 50))
            os.close(master)
            os.kill(os.getpid(), signal.SIGWINCH)
            async for size in sizes:
                seen.append(size)
        assert seen == [(109, 40), (120, 50)]


@pytest.mark.anyio
async def test_one_receiver_and_the_handler_from_before() -> None:
    def handler(number: int, frame: Any) -> None:
        """Stands for a host program's own."""

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with receive_signals([signal.SIGUSR1, signal.SIGRTMIN + 3]) as received:
            with pytest.raises(anyio.BusyResourceError), receive_signals([signal.SIGUSR1]):
                pass
            os.kill(os.getpid(), signal.SIGRTMIN + 3)
            assert await received.__anext__() == signal.SIGRTMIN + 3
        assert signal.getsignal(signal.SIGUSR1) is handler
        with receive_signals([signal.SIGUSR1]):
            pass
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.anyio
async def test_the_main_thread_only() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with receive_signals([signal.SIGUSR1]):
                pass
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(error) for error in errors] == ["receiving signals: only the main thread can"]


def test_what_is_forwarded() -> None:
    wanted = forwardable_signals()
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCONT} <= wanted
    assert signal.SIGRTMIN + 3 in wanted
    unwanted = "CHLD PIPE URG WINCH TSTP TTIN TTOU KILL STOP SEGV BUS FPE ILL"
    assert not {getattr(signal, f"SIG{name}") for name in unwanted.split()} & wanted
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        assert signal.SIGHUP not in forwardable_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.anyio
async def test_forwarding() -> None:
    got: list[int] = []
    done = anyio.Event()

    async def send(number: int) -> None:
        got.append(number)
        if number == signal.SIGINT:
            done.set()
        raise NotRunning("container x is not running")

    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    async with anyio.create_task_group() as group:
        await group.start(forward_signals, send)
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGINT)
        with anyio.fail_after(5):
            await done.wait()
        group.cancel_scope.cancel()
    assert got == [signal.SIGTERM, signal.SIGINT]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
