"""Which signals a container gets that reach its command, and holding them back until there is one who hands them on."""

from __future__ import annotations

import signal

__all__ = ["forwardable_signals", "hold_back", "let_through"]

# Docker hands on whatever can be caught, but for what is about this process itself: its children, its own pipes,
# its terminal and job control (the container's terminal has its own).
_OURS = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGPIPE,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)
# Raised by a fault of this very process: after a Python-level handler the faulting instruction is run again, forever.
_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS})
_UNCATCHABLE = frozenset({signal.SIGKILL, signal.SIGSTOP})


def forwardable_signals() -> frozenset[int]:
    """The signals to hand on to a container, as docker does.

    Without those that are ignored now (nohup(1) must go on protecting what it started), and those that have a
    handler from outside Python, which could not be put back.
    """
    wanted = {int(number) for number in signal.valid_signals()} - _OURS - _FAULTS - _UNCATCHABLE
    return frozenset(number for number in wanted if signal.getsignal(number) not in (signal.SIG_IGN, None))


def hold_back() -> frozenset[int]:
    """Block these signals in the calling thread; returns those to :func:`let_through`, which then arrive."""
    wanted = forwardable_signals()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    return wanted - before


def let_through(signals: frozenset[int]) -> None:
    """Let signals that were held back arrive; for the thread that held them. Again does nothing."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
