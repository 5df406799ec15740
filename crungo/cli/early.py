"""The start of ``crungo run``, before there is an event loop.

To import one takes longer than to make a container and to run most commands in it. So the container is asked for
first, where nothing has to be pulled, and the loop is imported in a thread while the spawner makes it. A command that
has ended by then, and whose output can be written without waiting, needs no loop any more; with every other, the engine
takes over the container that is under way.
"""

from __future__ import annotations

import _thread
import array
import fcntl
import os
import select
import signal
import sys
import termios

from crungo.errors import ContainerError, SpawnerDied
from crungo.io.fds import Kind, kind_of
from crungo.io.sigmask import hold_back, let_through
from crungo.runtime.requests import SpawnerProcess, require_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.cli.run_options import RunOptions
    from crungo.creation import Creation
    from crungo.paths import Roots

__all__ = ["run"]

OUTPUTS = (("stdout", 1), ("stderr", 2))
SWITCH = 0.0005
"""Seconds after which the thread that imports makes way for news of the container."""


def run(options: RunOptions, roots: Roots) -> int:
    """Run the container; returns its exit code, raises errors for the caller to print."""
    require_root()
    spawner = SpawnerProcess.start(roots)
    creation = None
    held: frozenset[int] = frozenset()
    try:
        creation = _begin(options, roots, spawner)
        if creation is not None:
            # From here on the command may run, and signals are for it.
            held = hold_back() if options.sig_proxy else held
            code = _run_meanwhile(creation, held)
            if code is not None:
                return code
        from crungo.cli.run import execute

        return execute(options, roots, spawner, creation, held)
    finally:
        if creation is not None:
            creation.close()
        if spawner.pidfd >= 0:  # no engine has ended it
            spawner.finish(roots)


def _begin(options: RunOptions, roots: Roots, spawner: SpawnerProcess) -> Creation | None:
    """The creation that needs no loop: nothing to pull, no log to show, no id to write first."""
    if options.cidfile is not None or options.crun_debug:
        return None
    from crungo.creation import begin  # the spawner starts meanwhile

    creation = begin(options.config, roots, spawner)
    if creation is not None and creation.image is not None:
        from crungo.cli.foreign import warn_if_foreign

        warn_if_foreign(options.config, creation.image.config)
    return creation


def _run_meanwhile(creation: Creation, held: frozenset[int]) -> int | None:
    """Ask for the container, and import the loop; the exit code, when all was over before that."""
    import threading  # noqa: F401 - imported by another thread, it would take that for the main one

    loop = os.eventfd(0, os.EFD_CLOEXEC)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        creation.request.send()
        _thread.start_new_thread(_import_loop, (loop,))
        if not creation.follow(loop):
            return None
    except SpawnerDied:
        return None  # the engine finds the same, and tells
    finally:
        sys.setswitchinterval(interval)
    exited, gone = creation.event("exited"), creation.event("gone")
    if exited is None or gone is None or creation.event("error") or gone["problem"] or creation.config.tty:
        return None
    if held & signal.sigpending() or not all(_fits(getattr(creation.stdio, name), sink) for name, sink in OUTPUTS):
        return None
    let_through(held)
    written = [_write(getattr(creation.stdio, name), sink) for name, sink in OUTPUTS]
    code: int = exited["code"]
    return code if all(written) else 128 + signal.SIGPIPE


def _import_loop(done: int) -> None:
    try:
        import anyio

        import crungo.cli.run

        anyio.run(crungo.cli.run.ready)
    except BaseException:  # noqa: S110 - the main thread meets the same, and tells
        pass
    finally:
        os.eventfd_write(done, 1)


def _fits(pipe: int, sink: int) -> bool:
    """Whether what is left in a pipe can be written at one stroke: then nobody has to wait for its reader."""
    size = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    if size[0] == 0:
        return True
    poll = select.poll()
    poll.register(sink, select.POLLOUT)
    # A pipe that poll(2) calls writable has room for PIPE_BUF bytes (pipe(7)).
    return size[0] <= select.PIPE_BUF and kind_of(sink) in (Kind.PIPE, Kind.READY, Kind.TERMINAL) and bool(poll.poll(0))


def _write(pipe: int, sink: int) -> bool:
    """Write what is left in a pipe; False when nobody reads it."""
    try:
        data = os.read(pipe, select.PIPE_BUF)
        while data:
            data = data[os.write(sink, data) :]
    except BrokenPipeError:
        return False
    except OSError as error:
        raise ContainerError(f"write output: {error.strerror}") from None
    return True
