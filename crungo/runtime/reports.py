"""How the spawner's children say what became of their work, and the events that the engine gets of it."""

from __future__ import annotations

import os
import sys

from crungo.errors import ContainerError, CrungoError, HostError, LibcrunError
from crungo.runtime._native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["failure", "report_of"]

_FAILURES = {lib.CRUNGO_FAILURE_CONTAINER: ContainerError, lib.CRUNGO_FAILURE_HOST: HostError}


def failure(error: BaseException) -> dict[str, Any]:
    """The event of an error: its class's name, so that the other side can raise the same."""
    if isinstance(error, LibcrunError):
        return {
            "event": "error",
            "kind": "LibcrunError",
            "operation": error.operation,
            "errno": error.errno,
            "message": error.reason,
        }
    if isinstance(error, CrungoError):
        return {"event": "error", "kind": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return {"event": "error", "kind": "ContainerError", "message": f"create container: {where}{error.strerror}"}
    return {"event": "error", "kind": "ContainerError", "message": f"create container: {type(error).__name__}: {error}"}


def report_of(packet: bytes) -> int | dict[str, Any] | None:
    """What was reported: the id of the process that was started, or the event of why not (``native/report.h``).

    None: the child that was to start it has ended without a word.
    """
    kind, number = (int.from_bytes(packet[at : at + 4], sys.byteorder, signed=True) for at in (0, 4))
    if kind == 0:
        return number
    if kind == lib.CRUNGO_FAILURE_ENDED:
        return None
    operation, message, hint, _ = (text.decode(errors="replace") for text in packet[8:].split(b"\0"))
    if kind == lib.CRUNGO_FAILURE_EXEC:
        return {"event": "error", "kind": "exec", "errno": number, "message": message}
    if kind == lib.CRUNGO_FAILURE_LIBCRUN:
        return failure(LibcrunError(operation, number, message))
    return failure(_FAILURES[kind](message, hint=hint or None))
