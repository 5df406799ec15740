"""libcrun, typed: the one module that owns its pointers and turns its errors into exceptions.

Only the spawner's children call it, each a fresh fork with one thread: libcrun changes the umask, the signal mask,
the working directory and the dumpable flag of its caller, and clones with raw system calls. A child that starts
something is C from its fork to its end (``native/start.h``): in Python, that would be a third of the time of a start.
"""

from __future__ import annotations

import os
import sys

from crungo.errors import ContainerError, HostError, LibcrunError
from crungo.runtime._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from crungo.errors import CrungoError

__all__ = ["Handlers", "Start", "report_of", "update"]

_FAILURES = {lib.CRUNGO_FAILURE_CONTAINER: ContainerError, lib.CRUNGO_FAILURE_HOST: HostError}


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


class Start:
    """What is to be started, in the form that ``crungo_start`` takes.

    ``spec`` is the text of an OCI runtime specification. ``user`` and ``groups`` are resolved in the container's files.
    """

    def __init__(
        self,
        *,
        identifier: str,
        state_root: str,
        directory: str,
        handlers: Handlers,
        spec: bytes,
        user: str | None,
        groups: Sequence[str],
        terminal: bool,
        debug: bool,
    ) -> None:
        # cffi frees a char[] with the last reference to it.
        self._kept: list[Any] = []
        self._start = ffi.new("struct crungo_start *")
        self._start.id = self._text(identifier)
        self._start.state_root = self._text(state_root)
        self._start.directory = self._text(directory)
        self._start.handlers = handlers.manager
        self._start.spec = ffi.from_buffer(spec)
        self._start.user = ffi.NULL if user is None else self._text(user)
        self._start.groups, self._start.n_groups = self._texts(groups)
        self._start.terminal = terminal
        self._start.debug = debug
        self._kept.append(spec)

    def container(
        self, *, layers: Sequence[str] | None, rootfs: str | None, files: Mapping[str, bytes], await_command: bool
    ) -> None:
        """Start a container, on an overlay of ``layers`` (lowest first) or on the directory ``rootfs``, as it is.

        ``files`` are made in its directory. With ``await_command`` it waits for its command, on descriptor 4.
        """
        self._start.layers, self._start.n_layers = self._texts(layers or ())
        self._start.rootfs = ffi.NULL if rootfs is None else self._text(rootfs)
        array = ffi.new("struct crungo_file[]", len(files))
        for entry, (name, content) in zip(array, files.items(), strict=True):
            entry.name, entry.content, entry.size = self._text(name), ffi.from_buffer(content), len(content)
        self._start.files, self._start.n_files = array, len(files)
        self._start.await_command = await_command
        self._kept += [array, files]

    def execution(self, *, init: int, hierarchies: Sequence[str], cgroup: str, child_cgroup: str) -> None:
        """Start a further process in the container whose init has this process id, in a cgroup below its own."""
        self._start.init = init
        self._start.hierarchies, self._start.n_hierarchies = self._texts(hierarchies)
        self._start.cgroup = self._text(cgroup)
        self._start.child_cgroup = self._text(child_cgroup)

    def fork(self, fds: Sequence[int], nofile: tuple[int, int]) -> int:
        """Fork the child, with these descriptors as its 0, 1, 2, …; returns its process id."""
        array = ffi.new("int[]", list(fds))
        self._start.fds, self._start.n_fds = array, len(fds)
        self._start.spawner = os.getpid()
        self._start.nofile = nofile
        pid: int = lib.crungo_start(self._start)
        if pid < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        return pid

    def _text(self, text: str) -> Any:
        self._kept.append(ffi.new("char[]", os.fsencode(text)))
        return self._kept[-1]

    def _texts(self, texts: Sequence[str]) -> tuple[Any, int]:
        self._kept.append(ffi.new("char *[]", [self._text(text) for text in texts]))
        return self._kept[-1], len(texts)


def report_of(packet: bytes) -> int | CrungoError:
    """What a child has reported: the id of the process that it started, or why it did not (``native/start.h``)."""
    kind, number = (int.from_bytes(packet[at : at + 4], sys.byteorder, signed=True) for at in (0, 4))
    if kind == 0:
        return number
    operation, message, hint, _ = (text.decode(errors="replace") for text in packet[8:].split(b"\0"))
    if kind == lib.CRUNGO_FAILURE_LIBCRUN:
        return LibcrunError(operation, number, message)
    return _FAILURES[kind](message, hint=hint or None)


def update(*, identifier: str, state_root: str, resources: bytes) -> None:
    """Set limits of a running container: the text of an OCI ``linux.resources`` object."""
    # As above: they live as long as the context that points to them.
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
