"""The command line's entry: ``crungo`` and ``python -m crungo``. Invariant: importing this imports nothing else."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    import gc
    import os
    import signal

    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # Ctrl-C ends this process as it ends others: an exception out of an import would be shown, or get lost.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from crungo.io.fds import ensure_standard_fds

    ensure_standard_fds()  # first of all: what is opened next would take the place of one that is closed
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - what is printed goes nowhere
    # Starting makes tens of thousands of objects that stay: looking through them for garbage finds none.
    gc.set_threshold(100_000, 10, 10)
    # A command runs on asyncio. httpcore imports trio wherever it is installed, which takes longer than all of httpx.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("trio", None)
    modules.setdefault("sniffio", None)  # httpcore imports it five times a request, even where it is not installed
    modules.setdefault("httpx._main", None)  # httpx's own command line, which brings click, rich and pygments
    modules.setdefault("zstandard", None)  # for answers in a form that is never asked for; layers unpack elsewhere
    from crungo.cli.dispatch import main as dispatch  # `import crungo.__main__` costs nothing

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)  # now there is somebody to catch the exception
    code = dispatch()
    if code:
        _finish_writing()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError) as error:
        from crungo.cli.messages import report

        code = code or report(error)
    # Whatever had to be ended has been; the interpreter's own end would free each object, for 25 ms.
    os._exit(code)


def _finish_writing() -> None:
    """Let worker threads end what they are at: Ctrl-C takes the loop from them, and the end of the process a file that
    is half written. Not for long: who waits for an answer of the resolver does so in vain."""
    threading = sys.modules.get("threading")
    if threading is not None:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(1.0)


if __name__ == "__main__":
    main()
