"""A session between a user's descriptors and a program's: a PTY with a real program on it, and three pipes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import termios
import threading
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from crungo.io.fds import Fd, pipe
from crungo.io.modes import ModeTracker
from crungo.io.pty import get_size, set_size
from crungo.io.session import interact, proxy
from crungo.io.winch import window_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crungo.io.session import InteractResult, ProxyResult

pytestmark = pytest.mark.anyio


class Collector(threading.Thread):
    """Reads a descriptor to its end, as the user's terminal emulator or the next program of a pipeline would."""

    def __init__(self, fd: Fd) -> None:
        super().__init__()
        self._fd = fd
        self._condition = threading.Condition()
        self.data = b""
        self.start()

    def run(self) -> None:
        with self._fd:
            while True:
                try:
                    part = os.read(self._fd.fileno(), 65536)
                except OSError:
                    part = b""
                with self._condition:
                    self.data += part
                    self._condition.notify_all()
                if not part:
                    return

    async def until(self, text: bytes) -> None:
        """Wait until ``text`` has arrived."""

        def wait() -> bool:
            with self._condition:
                return self._condition.wait_for(lambda: text in self.data, 10)

        assert await anyio.to_thread.run_sync(wait), self.data


def feed(fd: Fd, data: bytes) -> None:
    """Write ``data`` and the end, as the program before in a pipeline would."""
    with fd:
        view = memoryview(data)
        while view:
            view = view[os.write(fd.fileno(), view) :]


@contextmanager
def program(command: list[str], *, raw: bool = False) -> Iterator[tuple[Fd, subprocess.Popen[bytes]]]:
    """A program as a container's would be: leading a session on a PTY whose slave nobody else holds."""
    master, slave = (Fd(fd) for fd in os.openpty())
    with master:
        if raw:
            tty.setraw(slave.fileno())
        with slave:
            child = subprocess.Popen(
                ["setsid", "--ctty", "--", *command],
                stdin=slave.fileno(),
                stdout=slave.fileno(),
                stderr=slave.fileno(),
            )
        try:
            yield master, child
        finally:
            master.close()
            child.kill()  # nothing, if it has ended
            child.wait(10)


@contextmanager
def user_terminal() -> Iterator[tuple[Fd, Collector, Fd]]:
    """The user's side: where keys are typed, what the screen shows, and the descriptor that crungo is given."""
    outer, tty_fd = (Fd(fd) for fd in os.openpty())
    tty.setraw(tty_fd.fileno())
    collector = Collector(outer.dup())
    try:
        with outer, tty_fd:
            yield outer, collector, tty_fd
    finally:
        collector.join(10)


async def test_a_shell_on_a_terminal() -> None:
    with user_terminal() as (outer, screen, fd), program(["sh"]) as (master, child):
        results: list[InteractResult] = []

        async def session() -> None:
            results.append(await interact(master, stdin=fd.fileno(), stdout=fd.fileno()))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(session)
                os.write(outer.fileno(), b"PS1='ready> '; stty -echo; echo $((40 + 2))\n")
                await screen.until(b"42\r\nready> ")
                os.write(outer.fileno(), b"sh -c 'echo asleep; exec sleep 100'\n")
                await screen.until(b"asleep\r\n")
                os.write(outer.fileno(), b"\x03")  # Ctrl-C goes to the foreground job, and drops what else was typed
                await screen.until(b"asleep\r\n\r\nready> ")
                os.write(outer.fileno(), b"echo status $?\n")
                await screen.until(b"status 130\r\n")
                os.write(outer.fileno(), b"\x04")
        assert child.wait(10) == 0
        assert [result.reason for result in results] == ["ended"]
        assert os.get_blocking(fd.fileno())


async def test_all_output_is_shown_before_the_end() -> None:
    """The program is gone long before a slow reader has taken what it wrote."""
    out, sink = pipe()
    collector = Collector(out)
    with sink, program(["sh", "-c", "seq 1 40000"]) as (master, _):
        result = await interact(master, stdin=None, stdout=sink.fileno())
    collector.join()
    assert result.reason == "ended"
    expected = b"".join(b"%d\r\n" % n for n in range(1, 40001))
    assert collector.data == expected
    assert result.output.moved == len(expected)


@pytest.mark.parametrize("text", [b"", b"one\n", b"one\ntwo", b"line\n" * 20_000])
async def test_the_end_of_a_piped_stdin_is_typed(text: bytes) -> None:
    reader, writer = pipe()
    out, sink = pipe()
    collector = Collector(out)
    feeder = threading.Thread(target=feed, args=(writer, text))
    with reader, sink, program(["sh", "-c", "stty -echo -opost; echo go; exec cat"]) as (master, child):
        # Typed before stty has done its work, the text would be echoed.
        assert await anyio.to_thread.run_sync(os.read, master.fileno(), 4) == b"go\n"
        feeder.start()
        with anyio.fail_after(20):
            result = await interact(master, stdin=reader.fileno(), stdout=sink.fileno())
        assert child.wait(10) == 0
    feeder.join()
    collector.join()
    assert result.reason == "ended"
    assert collector.data == text


async def test_binary_both_ways_through_a_raw_terminal() -> None:
    data = random.Random(5).randbytes(300_000)
    reader, writer = pipe()
    out, sink = pipe()
    collector = Collector(out)
    feeder = threading.Thread(target=feed, args=(writer, data))
    copy = ["head", "-c", str(len(data))]
    with reader, sink, program(copy, raw=True) as (master, _):
        feeder.start()
        with anyio.fail_after(20):
            result = await interact(master, stdin=reader.fileno(), stdout=sink.fileno())
    feeder.join()
    collector.join()
    assert result.reason == "ended"
    assert collector.data == data


async def test_hanging_up_ends_the_session() -> None:
    outer, fd = (Fd(number) for number in os.openpty())
    with fd, program(["sh", "-c", "echo started; exec sleep 100"]) as (master, child):
        await anyio.to_thread.run_sync(os.read, master.fileno(), 1)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                results: list[InteractResult] = []

                async def session() -> None:
                    results.append(await interact(master, stdin=fd.fileno(), stdout=fd.fileno()))

                group.start_soon(session)
                await anyio.wait_all_tasks_blocked()
                outer.close()
        assert [result.reason for result in results] == ["hangup"]
        master.close()  # what the caller does next
        assert child.wait(10) == -signal.SIGHUP


async def test_a_reader_that_leaves() -> None:
    out, sink = pipe()
    with sink, program(["yes"]) as (master, child):
        out.close()
        with anyio.fail_after(10):
            result = await interact(master, stdin=None, stdout=sink.fileno())
        assert result.reason == "output-gone"
        master.close()
        assert child.wait(10) != 0


async def test_ctrl_c_stops_a_flood() -> None:
    """The key gets in while output never rests, and nothing of what was shown before is missing."""
    with user_terminal() as (outer, screen, fd), program(["sh", "-c", "yes; echo $?"]) as (master, child):
        tty.setraw(fd.fileno())
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: interact(master, stdin=fd.fileno(), stdout=fd.fileno()))
                await screen.until(b"y\r\n" * 1000)
                os.write(outer.fileno(), b"\x03")
                await anyio.to_thread.run_sync(child.wait)
    screen.join(10)
    assert screen.data.startswith(b"y\r\n" * 1000)
    assert b"^C" in screen.data


async def test_a_background_process_does_not_hold_the_session() -> None:
    """``exec -t``: the program has exited, and something that it started still has the terminal open."""
    exited = anyio.Event()
    out, sink = pipe()
    collector = Collector(out)
    command = ["sh", "-c", "trap '' HUP; sleep 100 & echo last words; echo $!"]
    with sink, program(command) as (master, child):
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                results: list[InteractResult] = []

                async def session() -> None:
                    results.append(await interact(master, stdin=None, stdout=sink.fileno(), exited=exited))

                group.start_soon(session)
                await anyio.to_thread.run_sync(child.wait)
                exited.set()
        assert [result.output.ending for result in results] == ["finished"]
    collector.join()
    words, pid = collector.data.split(b"\r\n")[:2]
    assert words == b"last words"
    os.kill(int(pid), signal.SIGKILL)


async def test_the_window_size_follows() -> None:
    script = (
        "import os, signal, sys, time\n"
        "def show(*_): print('size', *os.get_terminal_size(), flush=True)\n"
        "signal.signal(signal.SIGWINCH, show)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH}); show()\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH}); sys.stdin.read()\n"
    )
    with user_terminal() as (outer, screen, fd), program([sys.executable, "-c", script]) as (master, _):
        set_size(outer.fileno(), (90, 30))
        set_size(master.fileno(), (90, 30))
        modes = ModeTracker()
        with window_sizes(fd.fileno()) as sizes, anyio.fail_after(20):
            async with anyio.create_task_group() as group:

                async def session() -> None:
                    await interact(master, stdin=fd.fileno(), stdout=fd.fileno(), resizes=sizes, modes=modes)

                group.start_soon(session)
                await screen.until(b"size 90 30")
                set_size(outer.fileno(), (123, 45))
                os.kill(os.getpid(), signal.SIGWINCH)  # the kernel's, were this our controlling terminal
                await screen.until(b"size 123 45")
                assert get_size(master.fileno()) == (123, 45)
                os.write(outer.fileno(), b"\x04")


async def test_modes_see_a_terminal_only() -> None:
    modes = ModeTracker()
    out, sink = pipe()
    command = ["printf", r"\033[?25l"]
    with out, sink, program(command) as (master, _):
        await interact(master, stdin=None, stdout=sink.fileno(), modes=modes)
        assert modes.undo() == b""
    with user_terminal() as (_, _, fd), program(command) as (master, _):
        await interact(master, stdin=None, stdout=fd.fileno(), modes=modes)
        assert modes.undo() == b"\x1b[?25h\x1b[m"


class Piped:
    """A program on three pipes, and the three descriptors of its user."""

    def __init__(self, command: list[str], *, stdin: bool = True) -> None:
        theirs_in, self.near_in = pipe()
        self.near_out, theirs_out = pipe()
        self.near_err, theirs_err = pipe()
        with theirs_in, theirs_out, theirs_err:
            self.child = subprocess.Popen(
                command, stdin=theirs_in.fileno() if stdin else subprocess.DEVNULL, stdout=theirs_out.fileno(),
                stderr=theirs_err.fileno(),
            )  # fmt: skip
        user_in, self.keys = pipe()
        out, user_out = pipe()
        err, user_err = pipe()
        self.user_in, self.user_out, self.user_err = user_in, user_out, user_err
        self.out, self.err = out, err
        self.with_stdin = stdin

    async def run(self, exited: anyio.Event | None = None) -> ProxyResult:
        with anyio.fail_after(20):
            result = await proxy(
                stdin=(self.user_in.fileno(), self.near_in) if self.with_stdin else None,
                stdout=(self.near_out, self.user_out.fileno()),
                stderr=(self.near_err, self.user_err.fileno()),
                exited=exited,
            )
        self.user_out.close()
        self.user_err.close()
        self.user_in.close()
        self.near_in.close()
        self.keys.close()
        return result


async def test_half_close_separate_outputs_and_every_byte() -> None:
    data = random.Random(6).randbytes(3_000_000)
    piped = Piped(["sh", "-c", "tee /dev/stderr"])
    out, err = Collector(piped.out), Collector(piped.err)
    feeder = threading.Thread(target=feed, args=(piped.keys, data))
    feeder.start()
    result = await piped.run()
    for thread in (feeder, out, err):
        thread.join()
    assert piped.child.wait(10) == 0
    assert out.data == data
    assert err.data == data
    assert result.stdin is not None
    assert (result.stdin.ending, result.stdout.ending, result.stderr.ending) == ("eof", "eof", "eof")


async def test_without_stdin_nothing_of_it_is_read() -> None:
    piped = Piped(["sh", "-c", "cat; echo out; echo err >&2; exit 3"], stdin=False)
    os.write(piped.keys.fileno(), b"for the next command of the script")
    keep = piped.user_in.dup()
    out, err = Collector(piped.out), Collector(piped.err)
    result = await piped.run()
    out.join()
    err.join()
    assert piped.child.wait(10) == 3
    assert (out.data, err.data, result.stdin) == (b"out\n", b"err\n", None)
    with keep:
        assert os.read(keep.fileno(), 100) == b"for the next command of the script"


async def test_the_end_of_the_program_ends_an_idle_stdin() -> None:
    piped = Piped(["true"])
    out, err = Collector(piped.out), Collector(piped.err)
    result = await piped.run()
    out.join()
    err.join()
    assert piped.child.wait(10) == 0
    assert result.stdin is None
    assert piped.near_in.closed
    assert piped.near_out.closed
    assert piped.near_err.closed


async def test_a_closed_reader_gives_the_program_sigpipe() -> None:
    piped = Piped(["sh", "-c", "exec 2>&-; exec yes"])
    err = Collector(piped.err)
    piped.out.close()  # ``| head`` has seen enough
    result = await piped.run()
    err.join()
    assert piped.child.wait(10) == -signal.SIGPIPE
    assert result.stdout.ending == "sink-gone"


async def test_exited_ends_pipes_that_a_background_process_holds() -> None:
    exited = anyio.Event()
    piped = Piped(["sh", "-c", "sleep 100 & echo $!"])
    out, err = Collector(piped.out), Collector(piped.err)
    results: list[ProxyResult] = []
    async with anyio.create_task_group() as group:

        async def run() -> None:
            results.append(await piped.run(exited))

        group.start_soon(run)
        await anyio.to_thread.run_sync(piped.child.wait)
        exited.set()
    out.join()
    err.join()
    os.kill(int(out.data), signal.SIGKILL)
    assert [result.stdout.ending for result in results] == ["finished"]


async def test_cancelling_closes_the_near_ends() -> None:
    piped = Piped(["cat"])
    with anyio.move_on_after(0.05) as scope:
        await piped.run()
    assert scope.cancelled_caught
    assert piped.near_in.closed
    assert piped.near_out.closed
    assert piped.near_err.closed
    assert piped.child.wait(10) == 0
    for fd in (piped.keys, piped.user_in, piped.user_out, piped.user_err, piped.out, piped.err):
        fd.close()


async def test_the_users_terminal_is_left_as_it_was() -> None:
    outer, fd = (Fd(number) for number in os.openpty())
    with outer, fd, program(["echo", "hello"]) as (master, _):
        attributes = termios.tcgetattr(fd.fileno())
        await interact(master, stdin=fd.fileno(), stdout=fd.fileno())
        assert termios.tcgetattr(fd.fileno()) == attributes
        assert os.get_blocking(fd.fileno())
        assert os.read(outer.fileno(), 100) == b"hello\r\r\n"
