"""Signals that a command never hears of.

The kernel keeps from the first process of a pid namespace what it has no handler for: Ctrl-C does nothing to a
``sleep`` that is process 1. Whoever sits before it shall know why, and have a way out: the third one ends the
container.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.containers import Container

__all__ = ["Spared"]

_ENDS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3
_HINT = "\ncrungo: the command, as process 1, ignores {name} (--init would let it end); {left} more to kill it\n"


class Spared:
    """Counts the signals to end that came to nothing; ``terminal`` is a descriptor to say so on, where there is one."""

    def __init__(self, container: Container, terminal: int | None) -> None:
        self._container = container
        self._terminal = terminal
        self._count = 0

    def note(self, signum: int) -> None:
        """A signal was sent to the container. Raises NotRunning when that has ended."""
        if signum not in _ENDS or not _is_spared(self._container.pid, signum):
            return
        self._count += 1
        if self._count == _PATIENCE:
            self._container.kill()
        elif self._count < _PATIENCE and self._terminal is not None:
            text = _HINT.format(name=signal.Signals(signum).name, left=_PATIENCE - self._count)
            with suppress(OSError):
                os.write(self._terminal, text.encode())


def _is_spared(pid: int, signum: int) -> bool:
    """Whether a process neither handles a signal nor has it blocked, to wait for it; not of one that is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            masks = [line.split()[1] for line in file if line.startswith(("SigBlk:", "SigCgt:"))]
    except OSError:
        return False
    return not any(int(mask, 16) >> (signum - 1) & 1 for mask in masks)
