"""A spawner's start, once ``crungo-isolate`` has set it apart from its caller's descriptors, directory and mounts.

Called by ``python -I -S -c … ROOT RUN PATH…`` with the control socket as descriptor 3.
"""

from __future__ import annotations

import _socket
import os
import sys

from crungo.errors import CrungoError
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
        from crungo.runtime import cgroups, spawner

        os.set_inheritable(CONTROL_FD, False)
        for signum in spawner.IGNORED:
            syscalls.ignore_signal(signum)
        syscalls.set_name("crungo-spawner")
        syscalls.set_child_subreaper()
        cgroups.claim_controllers()
        spawner.Spawner(control, sys.argv[1], sys.argv[2]).serve()
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
