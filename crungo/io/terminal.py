"""The user's own terminal: what it is, and raw mode with the promise to bring it back.

Invariant: whatever way ``RawTerminal`` is left, the terminal is as it was: line settings, ``O_NONBLOCK``, and the modes
that the program inside left on (see ``modes``). Ways out: the end of the block, an error, SIGTERM, SIGHUP, SIGINT or
SIGQUIT with their default action, the end of the interpreter. A terminal that is gone by then is no error.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import termios
import threading
from typing import TYPE_CHECKING, Final

from crungo.errors import UsageError
from crungo.io.endpoints import Sink
from crungo.io.modes import ModeTracker
from crungo.io.pty import Size, get_size

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any, Self

__all__ = ["RawTerminal", "is_terminal", "terminal_size"]

_IFLAG: Final = 0  # places in what tcgetattr returns
_OFLAG: Final = 1
_CFLAG: Final = 2
_LFLAG: Final = 3
_CC: Final = 6

# Their default action ends the process without unwinding, so that no block is left properly.
_DEADLY: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def is_terminal(fd: int) -> bool:
    """Whether ``fd`` is open and leads to a terminal."""
    return os.isatty(fd)


def terminal_size(fd: int) -> Size | None:
    """The window size; None when ``fd`` is no terminal or it is gone."""
    try:
        return get_size(fd)
    except termios.error:
        return None


class RawTerminal:
    """Raw mode on the terminal ``fd`` for the length of a block.

    ``modes`` is to be fed with what the terminal is shown (``session.interact`` does it).

    All changes are made at once (TCSANOW). TCSADRAIN would wait for output to drain, on the loop, for as long as the
    user has stopped it with Ctrl-S; nothing is gained, since Linux processes output when it is written, not when
    it leaves. TCSAFLUSH would throw away what was typed ahead.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None
        self._blocking = True
        self._pid = 0
        self._handled: list[signal.Signals] = []
        self.modes = ModeTracker()

    def __enter__(self) -> Self:
        try:
            saved = termios.tcgetattr(self._fd)
        except termios.error as error:
            raise UsageError(f"terminal: descriptor {self._fd} is not a terminal") from error
        self._blocking = os.get_blocking(self._fd)
        self._pid = os.getpid()
        self._saved = saved
        # The ways back first: a signal may come between any two of these steps.
        atexit.register(self.restore)
        self._handle_deadly()
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, _raw(saved))
        except BaseException as error:
            self._leave()
            if isinstance(error, termios.error):
                raise UsageError(f"terminal: cannot change its mode: {error.args[-1]}") from error
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._leave()

    def restore(self) -> None:
        """Bring the terminal back now; leaving the block does it, and doing it twice does no harm."""
        saved, self._saved = self._saved, None
        # A forked child inherits this object with everything else, and has no business with the terminal.
        if saved is None or os.getpid() != self._pid:
            return
        # After Ctrl-Z by kill(1) and a bg the shell owns the terminal and has set it to its liking.
        if _in_background(self._fd):
            return
        self._undo_modes()
        with contextlib.suppress(termios.error):  # EIO, ENOTTY: it is gone
            termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        with contextlib.suppress(OSError):
            if os.get_blocking(self._fd) != self._blocking:
                os.set_blocking(self._fd, self._blocking)

    def _leave(self) -> None:
        self.restore()
        atexit.unregister(self.restore)
        for number in self._handled:
            # Only what is still ours: a loop may have put its own handler there meanwhile.
            if signal.getsignal(number) == self._on_deadly:
                signal.signal(number, signal.SIG_DFL)
        self._handled.clear()

    def _undo_modes(self) -> None:
        data = self.modes.undo()
        if not data:
            return
        # A few bytes to a terminal that may be stopped or gone: what does not fit at once is not worth waiting for.
        with contextlib.suppress(OSError), Sink(self._fd) as sink:
            sink.write(memoryview(data))

    def _handle_deadly(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _DEADLY:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._on_deadly)
                self._handled.append(number)

    def _on_deadly(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        # Die of the signal itself, so that whoever waits for this process sees the truth.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _raw(saved: list[Any]) -> list[Any]:
    """The same settings in raw mode: cfmakeraw(3), reads of at least one byte."""
    raw = list(saved)
    raw[_IFLAG] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[_OFLAG] &= ~termios.OPOST
    raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[_CC] = list(saved[_CC])
    raw[_CC][termios.VMIN] = 1
    raw[_CC][termios.VTIME] = 0
    return raw


def _in_background(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False  # not our controlling terminal: nobody's background
