"""A program on a real pseudo-terminal, driven as a person would: type, read, resize, hang up.

Reading waits for the terminal or for the program's end, whichever comes first, and never sleeps. What the program
draws is kept by a terminal emulator, so that a test can look at the screen as well as at the bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyte

__all__ = ["Terminal"]

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-B]|[=>78cDEHMZ])")


class _Screen(pyte.Screen):
    """Answers what programs ask a terminal (where the cursor is), as real ones do."""

    def __init__(self, columns: int, rows: int, reply: Callable[[str], None]) -> None:
        self._reply = reply
        super().__init__(columns, rows)

    def write_process_input(self, data: str) -> None:
        self._reply(data)


class Terminal:
    """``with Terminal([...]) as terminal``: the program starts in the block and is gone after it.

    The program leads a session whose controlling terminal this is. ``output`` is all that it has written, as bytes.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self.output = b""
        self._read_to = 0
        self._ended = False
        self._master, self._slave = pty.openpty()
        self._screen = _Screen(columns, rows, self.send)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(columns, rows)
        self._attributes = termios.tcgetattr(self._slave)
        self._flags = fcntl.fcntl(self._slave, fcntl.F_GETFL)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--", *command], stdin=self._slave, stdout=self._slave, stderr=self._slave,
            env={**os.environ, "TERM": "xterm", **(env or {})}, cwd=cwd,
        )  # fmt: skip
        self._pidfd = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Typing.

    def send(self, data: str | bytes) -> None:
        """Type; ``\\r`` is the return key."""
        view = memoryview(data.encode() if isinstance(data, str) else data)
        while view:
            view = view[os.write(self._master, view) :]

    def line(self, text: str) -> None:
        self.send(text + "\r")

    def control(self, key: str) -> None:
        """A key with Ctrl: ``control("C")``, ``control("\\\\")``."""
        self.send(bytes([ord(key.upper()) & 0x1F]))

    def resize(self, columns: int, rows: int) -> None:
        """Change the window's size; the kernel tells the foreground by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(lines=rows, columns=columns)

    def hang_up(self) -> None:
        """Close the window: the session's leader gets SIGHUP, and reads end."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    # Reading.

    @property
    def text(self) -> str:
        """The output without escape sequences and carriage returns."""
        return _ESCAPES.sub(b"", self.output).replace(b"\r", b"").decode(errors="replace")

    @property
    def screen(self) -> str:
        """The screen as it looks now, a line for each row, without blanks at the ends."""
        return "\n".join(row.rstrip() for row in self._screen.display)

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and row of the cursor, both from 0."""
        return self._screen.cursor.x, self._screen.cursor.y

    @property
    def foreground(self) -> int:
        """The process group that keys such as Ctrl-C reach; ``process.pid`` is that of the program started here."""
        return os.tcgetpgrp(self._master)

    def expect(self, pattern: str | bytes, timeout: float = 10.0) -> re.Match[bytes]:
        """Read until the output holds this, from the end of the last match on; escape sequences are part of it."""
        regex = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + timeout
        while True:
            if found := regex.search(self.output, self._read_to):
                self._read_to = found.end()
                return found
            if not self._read(deadline):
                raise AssertionError(f"no {regex.pattern!r} in the output from {self._read_to} on\n{self._report()}")

    def expect_screen(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Read until the screen shows this (``^`` and ``$`` match at every row)."""
        regex = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout
        while True:
            if found := regex.search(self.screen):
                return found
            if not self._read(deadline):
                raise AssertionError(f"no {pattern!r} on the screen\n{self._report()}")

    def wait(self, timeout: float = 10.0) -> int:
        """Read to the end of the program; returns its exit code, -n when signal n killed it."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        if not self._ended and not _ready([self._pidfd], deadline):
            raise AssertionError(f"the program has not ended after {timeout} s\n{self._report()}")
        return self.process.wait()

    def assert_restored(self) -> None:
        """The terminal is as it was before: its attributes, its blocking mode, the cursor visible."""
        before, after = _named(self._attributes), _named(termios.tcgetattr(self._slave))
        changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        assert not changed, f"terminal attributes left changed (before, after): {changed}"
        flags = fcntl.fcntl(self._slave, fcntl.F_GETFL)
        assert flags == self._flags, f"flags of the terminal's description left changed: {self._flags:o} -> {flags:o}"
        assert pyte.modes.DECTCEM in self._screen.mode, "the cursor was left hidden"

    def assert_raw(self) -> None:
        """The terminal hands keys on one by one, unechoed."""
        local = termios.tcgetattr(self._slave)[3]
        assert not local & (termios.ICANON | termios.ECHO | termios.ISIG), f"not in raw mode: {local:o}"

    def close(self) -> None:
        """End the program, if it has not ended, and give everything back."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.process.wait()
        self.hang_up()
        os.close(self._slave)
        os.close(self._pidfd)

    def _read(self, deadline: float) -> bool:
        """Take in what there is; False at the end of the program's output or of the time."""
        if self._master < 0:
            return False
        ready = _ready([self._master, self._pidfd], deadline)
        if self._master in ready:
            data = os.read(self._master, 65536)
            self.output += data
            self._stream.feed(data)
            return True
        # With our own slave open there is no end of file: the program's end, with nothing left to read, is it.
        self._ended = self._ended or self._pidfd in ready
        return False

    def _report(self) -> str:
        state = "over" if self._ended else "running"
        return f"the program is {state}; screen:\n{self.screen}\noutput: {self.output[-2000:]!r}"


def _ready(descriptors: Sequence[int], deadline: float) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(max(0, round((deadline - time.monotonic()) * 1000)))]


def _named(attributes: list[Any]) -> dict[str, Any]:
    return dict(zip(("iflag", "oflag", "cflag", "lflag", "ispeed", "ospeed", "cc"), attributes, strict=True))
