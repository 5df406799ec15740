"""What the command line says when something fails, and the exit code that goes with it.

Invariant: one line ``crungo: <what failed>: <why>`` on stderr, a line with a hint where there is one, and after an
error of the command line where to read on. Nothing here goes to stdout, and nothing here raises. What a message quotes
of images and registries cannot move the cursor: only printable characters get through.
"""

from __future__ import annotations

import os
import sys

from crungo.errors import ConfigurationError, CrungoError, UsageError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["report", "warn"]

FAILED, INTERRUPTED, BROKEN_PIPE = 125, 130, 141


def report(error: BaseException, *, verb: str | None = None, debug: bool = False) -> int:
    """Print the error that ended a verb; returns the exit code.

    Of several at once (an exception group), the first that is ours is the one to tell.
    """
    leaves = list(_leaves(error))
    if debug:
        _print_traceback(error)
    for leaf in leaves:
        if isinstance(leaf, CrungoError):
            _print_error(leaf, verb)
            return leaf.exit_code
    first = leaves[0]
    if isinstance(first, SystemExit):
        return first.code if isinstance(first.code, int) else 0 if first.code is None else FAILED
    if isinstance(first, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(first, BrokenPipeError):
        # The reader of our output has left. The interpreter would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return BROKEN_PIPE
    if isinstance(first, OSError):
        where = f"{os.fsdecode(first.filename)}: " if isinstance(first.filename, (str, bytes)) else ""
        _write(f"crungo: {printable(f'{where}{first.strerror or first}')}\n")
        if isinstance(first, PermissionError) and os.geteuid() != 0:
            _write("hint: run it with sudo\n")
    else:
        _write(f"crungo: internal error: {type(first).__name__}: {printable(str(first))}\n")
        if not debug:
            _write("hint: `crungo --debug` shows where\n")
    return FAILED


def warn(text: str) -> None:
    """Print what the user should know of something that goes on."""
    _write(f"crungo: warning: {printable(text)}\n")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _print_error(error: CrungoError, verb: str | None) -> None:
    lines = [f"crungo: {printable(str(error))}"]
    if error.hint:
        lines.append(f"hint: {printable(error.hint)}")
    if isinstance(error, UsageError) and not isinstance(error, ConfigurationError):
        command = f"crungo {verb}" if verb else "crungo"
        lines += ["", f"Run '{command} --help' for more information"]
    _write("\n".join(lines) + "\n")


def _print_traceback(error: BaseException) -> None:
    import traceback

    # Messages of all that led here are in it, of libraries too, and with them what a registry or an image has sent.
    _write(printable("".join(traceback.format_exception(error)), keep="\n"))


def _write(text: str) -> None:
    """To stderr, as far as that is possible; it may be closed, or nobody may read it."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
