"""The progress of pulls, on stderr: a display that is redrawn in place where that is a terminal, plain lines elsewhere.

Own escape sequences rather than a library: the well-known one takes 40 ms to import, as long as a container takes to
start and end, and refreshes from a thread.

Invariant: nothing of the terminal is changed that would have to be restored: the cursor stays visible and rests below
the display, so that after a kill at any moment the shell's prompt comes right under it. Where the display ends without
its pull being done, it is wiped out.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from crungo.cli.progress_state import Pull, closing_lines, live_lines, plain_line
from crungo.registry.progress import ImageDone, ImageResolved, ImageRetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import anyio

    from crungo.registry.progress import ProgressEvent

__all__ = ["PullProgress", "pull_progress"]

_INTERVAL = 0.1  # seconds between two drawings
_TICK = 0.25  # seconds after which a drawing is renewed though nothing has come: the window's size and the rates change


def pull_progress(fd: int, *, missing: bool = False) -> PullProgress:
    """Progress on a descriptor. ``missing``: what is pulled was looked for and not found, which is told first."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return PullProgress(fd, _Screen(fd) if os.isatty(fd) and not dumb else None, missing=missing)


class PullProgress:
    """A context manager, of the main thread; on leaving it, the display is gone."""

    def __init__(self, fd: int, screen: _Screen | None, *, missing: bool) -> None:
        self._fd = fd
        self._screen = screen
        self._missing = missing
        self._pulls: list[Pull] = []
        self._drawn = 0.0
        self._wake: anyio.Event | None = None

    def __enter__(self) -> Self:
        if self._screen is not None:
            screen = self._screen
            # After Ctrl-Z the shell has written below the display: after fg it goes on under that.
            self._continued = signal.signal(signal.SIGCONT, lambda *_: screen.forget())
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._screen is not None:
            signal.signal(signal.SIGCONT, self._continued)
            self._screen.draw([], patient=True)

    @contextmanager
    def follow(self) -> Iterator[Callable[[ProgressEvent], None]]:
        """What one pull gives its events to; one that has failed when the block ends leaves the display."""
        pull = Pull()
        self._pulls.append(pull)
        try:
            yield lambda event: self._take(pull, event)
        finally:
            if pull in self._pulls:
                self._pulls.remove(pull)
                if self._screen is not None:
                    self._screen.draw(self._live(), patient=True)

    async def keep_fresh(self) -> None:
        """Redraw now and then what is shown, until cancelled; as long as nothing is, wait."""
        import anyio

        while self._screen is not None:
            if not self._screen.shown:
                self._wake = anyio.Event()
                await self._wake.wait()
            await anyio.sleep(_TICK)
            if self._screen.shown and time.monotonic() - self._drawn >= _TICK:
                self._draw()

    def _take(self, pull: Pull, event: ProgressEvent) -> None:
        pull.take(event, time.monotonic())
        if self._missing and isinstance(event, ImageResolved):
            self._say(f"Unable to find image '{event.reference.familiar}' locally")
        if self._screen is None:
            line = plain_line(pull, event)
            if line is not None:
                self._say(line)
        elif isinstance(event, ImageDone):
            self._pulls.remove(pull)
            self._screen.draw(self._live(), above=closing_lines(pull, self._screen.size()[0]), patient=True)
        elif isinstance(event, (ImageResolved, ImageRetry)) or time.monotonic() - self._drawn >= _INTERVAL:
            self._draw()
        if self._missing and isinstance(event, ImageDone) and event.changed:
            self._say(f"Status: Downloaded newer image for {event.reference.familiar}")

    def _live(self) -> list[str]:
        assert self._screen is not None
        return live_lines(self._pulls, *self._screen.size(), time.monotonic())

    def _draw(self) -> None:
        assert self._screen is not None
        self._drawn = time.monotonic()
        self._screen.draw(self._live())
        if self._wake is not None:
            self._wake.set()

    def _say(self, line: str) -> None:
        if self._screen is not None:
            self._screen.draw(self._live(), above=[line], patient=True)
        else:
            _write(self._fd, f"{line}\n")


class _Screen:
    """Lines at the bottom of a terminal, drawn over again and again; the cursor rests on the row below them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._shown: list[str] = []

    @property
    def shown(self) -> bool:
        return bool(self._shown)

    def forget(self) -> None:
        """What was shown is no longer at the bottom, and stays as it is."""
        self._shown = []

    def size(self) -> tuple[int, int]:
        """Columns and rows; some terminals do not know theirs."""
        try:
            columns, rows = os.get_terminal_size(self._fd)
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def draw(self, lines: Sequence[str], *, above: Sequence[str] = (), patient: bool = False) -> None:
        """Replace the lines; ``above`` are written over them, and stay.

        A terminal that takes nothing (Ctrl-S) is left alone: the pull goes on. Not so with ``patient``.
        """
        if not patient and not select.select([], [self._fd], [], 0)[1]:
            return
        columns, _ = self.size()
        # A window that was made narrower has wrapped the lines that did not fit any more.
        up = sum(max(1, -(-len(line) // columns)) for line in self._shown)
        start = f"\x1b[{up}A\r" if up else ""
        body = "".join(f"{line}\x1b[K\n" for line in (*above, *lines))
        if up or body:
            _write(self._fd, f"{start}{body}\x1b[J")
        self._shown = list(lines)


def _write(fd: int, text: str) -> None:
    """All of it, as far as somebody reads it."""
    data = text.encode("utf-8", "replace")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # the terminal is gone, or its reader; the pull is not
