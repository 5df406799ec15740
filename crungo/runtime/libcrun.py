"""libcrun, typed: the one module that owns its pointers and turns its errors into exceptions.

Only the spawner's children call it, each a fresh fork with one thread: libcrun changes the umask, the signal mask,
the working directory and the dumpable flag of its caller, and clones with raw system calls.
"""

from __future__ import annotations

import os

from crungo.errors import LibcrunError
from crungo.runtime._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["COMMAND_FD", "STATUS_FD", "Handlers", "Libcrun", "Spec", "log_to"]

STATUS_FD = 3
COMMAND_FD = 4
"""Where a container's first process tells of a failed exec, and where a pooled one gets its command (native/crun.h)."""


class Handlers:
    """Our libcrun handler, loaded by libcrun's own plugin mechanism; once per spawner, inherited by its children.

    ``directory`` must hold nothing but a symbolic link to the extension module.
    """

    def __init__(self, directory: str) -> None:
        error = ffi.new("libcrun_error_t *")
        self.manager = lib.libcrun_handler_manager_create(error)
        if self.manager == ffi.NULL:
            raise _exception("handlers", error)
        if lib.libcrun_handler_manager_load_directory(self.manager, os.fsencode(directory), error) < 0:
            raise _exception("handlers", error)


class Spec:
    """A parsed OCI runtime specification, owned; ``close`` frees it."""

    def __init__(self, text: bytes) -> None:
        error = ffi.new("libcrun_error_t *")
        self.pointer = lib.libcrun_container_load_from_memory(text, error)
        if self.pointer == ffi.NULL:
            raise _exception("load", error)

    def set_user(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        """Set the process's user; all are numbers inside the container."""
        if lib.crungo_set_user(self.pointer, uid, gid, ffi.new("uint32_t[]", list(groups)), len(groups)) < 0:
            raise LibcrunError("load", 0, "the specification has no process")

    def close(self) -> None:
        if self.pointer != ffi.NULL:
            lib.libcrun_container_free(self.pointer)
            self.pointer = ffi.NULL


class Libcrun:
    """libcrun's calls on one container: its id, its state directory (``<state_root>/<id>``), its bundle."""

    def __init__(self, *, state_root: str, identifier: str, bundle: str, handlers: Handlers | None = None) -> None:
        # cffi frees a char[] with the last reference to it: they live as long as the context that points to them.
        self._strings = {
            "state_root": ffi.new("char[]", os.fsencode(state_root)),
            "id": ffi.new("char[]", identifier.encode()),
            "bundle": ffi.new("char[]", os.fsencode(bundle)),
        }
        self._context = ffi.new("libcrun_context_t *")
        for name, value in self._strings.items():
            setattr(self._context, name, value)
        lib.crungo_set_output(self._context)
        self._context.preserve_fds = 1  # STATUS_FD
        self._context.fifo_exec_wait_fd = -1
        self._context.detach = True
        if handlers is not None:
            self._context.handler_manager = handlers.manager

    def create(self, spec: Spec, *, console_socket: str | None = None, await_command: bool = False) -> None:
        """Create the container; its init waits for :meth:`start`.

        With ``await_command`` it then waits for its command, on descriptor ``COMMAND_FD``.

        With a terminal, libcrun connects to ``console_socket`` and sends the PTY's master over it.
        """
        if console_socket is not None:
            self._set("console_socket", console_socket)
        if await_command:
            lib.crungo_await_command()
            self._context.preserve_fds = 2  # COMMAND_FD too
        self._call("create", lib.libcrun_container_create, self._context, spec.pointer, 0)

    def start(self) -> None:
        """Let the init of a container that was created a moment ago go on to its exec.

        It is libcrun's start, without its look at records that are known.
        """
        arguments = (self._strings["state_root"], self._strings["id"])
        self._call("start", lib.libcrun_status_write_exec_fifo, *arguments)

    def execute(self, spec: Spec, *, cgroup: str, pid_file: str, console_socket: str | None = None) -> None:
        """Start the process of ``spec``, which has nothing else, in the running container.

        ``cgroup`` is below the container's own; the pid is written to ``pid_file``.
        """
        self._set("pid_file", pid_file)
        if console_socket is not None:
            self._set("console_socket", console_socket)
        arguments = (self._context, self._strings["id"], spec.pointer, ffi.new("char[]", cgroup.encode()))
        self._call("exec", lib.crungo_exec, *arguments)

    def update(self, resources: bytes) -> None:
        """Set limits: the text of an OCI ``linux.resources`` object."""
        arguments = (self._context, self._strings["id"], resources, len(resources))
        self._call("update", lib.libcrun_container_update, *arguments)

    def pid(self) -> int:
        """The process id of the container's init, as seen by the caller."""
        error = ffi.new("libcrun_error_t *")
        status = ffi.new("libcrun_container_status_t *")
        if lib.libcrun_read_container_status(status, self._context.state_root, self._context.id, error) < 0:
            raise _exception("state", error)
        pid: int = status.pid
        lib.libcrun_free_container_status(status)
        return pid

    def _set(self, field: str, value: str) -> None:
        self._strings[field] = ffi.new("char[]", os.fsencode(value))
        setattr(self._context, field, self._strings[field])

    def _call(self, operation: str, function: Any, *arguments: Any) -> None:
        error = ffi.new("libcrun_error_t *")
        if function(*arguments, error) < 0:
            raise _exception(operation, error)


def log_to(fd: int = -1, *, debug: bool = False, errors: int = -1) -> None:
    """Send libcrun's log to ``fd``, a line a message, or nowhere; errors to a status descriptor too."""
    lib.crungo_log_to(fd, errors)
    lib.libcrun_set_verbosity(lib.LIBCRUN_VERBOSITY_DEBUG if debug else lib.LIBCRUN_VERBOSITY_WARNING)


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
