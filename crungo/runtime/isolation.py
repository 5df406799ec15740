"""A spawner's start, once it is set apart from its caller.

``crungo-isolate`` has left the caller's descriptors, directory and mount namespace, and has mounted the interpreter
read-only upon itself: a program inside a container that reaches it through ``/proc/self/exe`` (as the entrypoint, a
script's or a binary's interpreter, or while something is executed inside) finds a file that cannot be written
(CVE-2019-5736). libcrun's own answer, a copy in memory, costs more each time and breaks interpreters that find their
libraries relative to themselves.

Called by ``python -I -S -c … FILE ROOT RUN PATH…`` with the control socket as descriptor 3; FILE is what was mounted.
"""

from __future__ import annotations

import _socket
import os
import sys

from crungo.errors import CrungoError, HostError
from crungo.runtime import syscalls, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

CONTROL_FD = 3


def main() -> NoReturn:
    """Serve, and end."""
    control = _socket.socket(fileno=CONTROL_FD)
    try:
        _require_read_only(sys.argv[1])
        from crungo.runtime import cgroups, spawner

        os.set_inheritable(CONTROL_FD, False)
        for signum in spawner.IGNORED:
            syscalls.set_signal(signum, ignored=True)
        syscalls.set_name("crungo-spawner")
        syscalls.set_child_subreaper()
        cgroups.claim_controllers()
        spawner.Spawner(control, sys.argv[2], sys.argv[3]).serve()
    except BaseException as error:  # the engine shall be told, whatever it was
        wire.send(control, {"event": "died", "message": _words(error)})
        os._exit(1)
    os._exit(0)


def _words(error: BaseException) -> str:
    if isinstance(error, CrungoError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def _require_read_only(mounted: str) -> None:
    """Start once more where ``sys.executable`` was a script, or a program, that led to another interpreter."""
    if os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        return
    actual = os.readlink("/proc/self/exe")
    if actual == mounted:
        raise HostError(f"{actual}: cannot be made read-only for containers")
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "crungo-isolate")
    words = [actual if word == mounted else word for word in sys.orig_argv]
    os.execv(program, [program, actual, *words])  # noqa: S606 - without a shell
