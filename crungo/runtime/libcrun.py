"""libcrun, typed: the one module that owns its pointers and turns its errors into exceptions.

Only children of the spawner call it, each a fresh fork with one thread: libcrun changes the umask, the signal mask,
the working directory and the dumpable flag of its caller, and clones with raw system calls. Containers are not started
from here, but by a program of their own (``forkserver.py``).
"""

from __future__ import annotations

import os

from crungo.errors import LibcrunError
from crungo.runtime._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["update"]


def update(*, identifier: str, state_root: str, resources: bytes) -> None:
    """Set limits of a running container: the text of an OCI ``linux.resources`` object."""
    # cffi frees a char[] with the last reference to it: they live as long as the context that points to them.
    strings = [ffi.new("char[]", os.fsencode(text)) for text in (state_root, identifier)]
    context = ffi.new("libcrun_context_t *")
    context.state_root, context.id = strings
    lib.crungo_log_to(-1, -1)
    lib.crungo_set_output(context)
    error = ffi.new("libcrun_error_t *")
    if lib.libcrun_container_update(context, strings[1], resources, len(resources), error) < 0:
        raise _exception("update", error)


def _exception(operation: str, error: Any) -> LibcrunError:
    """The exception for a failed call; a call can fail and leave the error unset."""
    if error[0] == ffi.NULL:
        return LibcrunError(operation, 0, "failed without saying why")
    status = error[0].status
    message = ffi.NULL if error[0].msg == ffi.NULL else ffi.string(error[0].msg)
    lib.libcrun_error_release(error)
    reason = "unknown error" if message == ffi.NULL else message.decode(errors="replace")
    if status > 0:
        reason = f"{reason}: {os.strerror(status)}"
    return LibcrunError(operation, status, reason)
