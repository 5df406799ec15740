"""What the spawner's children do: each function runs in a fresh fork with one thread, reports once, and ends.

Descriptors are arranged first: 0, 1, 2 are the container's own (never the user's), 3 tells of a failed exec, 4 brings
the command of a pooled container, 5 is the report to the spawner, 6 libcrun's log. Everything else that was inherited
is closed, so that no container holds a descriptor of another.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import sys

from crungo.errors import CrungoError, LibcrunError
from crungo.runtime import cgroups, freezer, rootfs, syscalls, wire
from crungo.runtime.libcrun import STATUS_FD, Libcrun, Spec, log_to
from crungo.runtime.state import remove_tree
from crungo.runtime.users import resolve_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from crungo.runtime.libcrun import Handlers
    from crungo.runtime.state import Claim, Places

__all__ = [
    "LOG_FD",
    "REPORT_FD",
    "arrange",
    "create",
    "end_execution",
    "execute",
    "failure",
    "remove",
    "update",
]

REPORT_FD = 5
LOG_FD = 6


def arrange(wanted: Sequence[int]) -> None:
    """Move descriptors to 0, 1, 2, … in the order given, and close all others."""
    # The others first: the limit on descriptors is the caller's by now, and the spawner may hold more than that.
    free = 0
    for fd in sorted(wanted):
        if free < fd:
            syscalls.close_range(free, fd - 1)
        free = fd + 1
    syscalls.close_range(free)
    # Then out of the way: a wanted descriptor may sit where another has to go.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(wanted)) for fd in wanted]
    for target, fd in enumerate(moved):
        os.dup2(fd, target, inheritable=target <= STATUS_FD)
    syscalls.close_range(len(wanted))


def failure(error: BaseException) -> dict[str, Any]:
    """The report of an error: its class's name, so that the other side can raise the same."""
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


def create(request: dict[str, Any], claim: Claim, handlers: Handlers, report: _socket.socket) -> None:
    """Assemble the root, create the container, and start it.

    Reports ``{"pid": n}`` with a pidfd of init and, with a terminal, the PTY's master.
    """
    log_to(LOG_FD if request["debug"] else -1, debug=request["debug"])
    syscalls.set_child_subreaper()  # what libcrun leaves behind is the spawner's only once it has our report
    directory = claim.directory
    os.chdir(directory)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    layers = request["layers"]
    if layers is None:
        target = rootfs.bind_directory(request["rootfs"], directory)
    else:
        target = rootfs.assemble_overlay(layers, directory)
    for name, content in request["files"].items():
        _write(f"{directory}/{name}", content)
    spec = Spec(request["spec"])
    root = rootfs.open_root(target)
    rootfs.require_directories(root, repair=layers is not None)
    if layers is not None:
        rootfs.remove_dead_links(root, request["files"])
    user = _set_user(spec, request, root)
    crun = Libcrun(state_root=claim.places.state, identifier=claim.identifier, bundle=directory, handlers=handlers)
    console = _Console() if request["tty"] else None
    crun.create(spec, console_socket=None if console is None else console.path, await_command=request["await_command"])
    pid = crun.pid()
    fds = [os.pidfd_open(pid)]
    if console is not None:
        fds.append(console.take_master())
    wire.send(report, {"event": "created", "pid": pid, "user": user}, fds)
    crun.start()


def execute(request: dict[str, Any], cgroup: str, places: Places, handlers: Handlers, report: _socket.socket) -> None:
    """Start a further process in a running container; reports like :func:`create`."""
    log_to(LOG_FD if request["debug"] else -1, debug=request["debug"], errors=STATUS_FD)
    syscalls.set_child_subreaper()  # as above: a short process may have ended before it is reported
    identifier = request["id"]
    folder = f"{places.work}/exec-{os.getpid()}"
    os.mkdir(folder, 0o700)
    os.chdir(folder)
    try:
        crun = Libcrun(state_root=places.state, identifier=identifier, bundle="/", handlers=handlers)
        spec = Spec(b'{"ociVersion":"1.0.2","process":' + request["process"] + b"}")
        _set_user(spec, request, rootfs.open_root(f"/proc/{crun.pid()}/root"))
        cgroups.make_child(identifier, cgroup)
        console = _Console() if request["tty"] else None
        crun.execute(spec, cgroup=cgroup, pid_file="pid", console_socket=None if console is None else console.path)
        with open("pid", "rb") as file:
            pid = int(file.read())
        fds = [os.pidfd_open(pid)]
        if console is not None:
            fds.append(console.take_master())
        wire.send(report, {"event": "created", "pid": pid}, fds)
    finally:
        os.chdir("/")
        remove_tree(folder)


def update(claim: Claim, resources: bytes, reply: str, channel: _socket.socket) -> None:
    """Change the limits of a running container; replies on its channel, by an event named ``reply``."""
    log_to()
    error = None
    try:
        crun = Libcrun(state_root=claim.places.state, identifier=claim.identifier, bundle="/")
        crun.update(resources)
    except CrungoError as problem:
        error = failure(problem)
    wire.send(channel, {"event": reply, "error": error})


def end_execution(identifier: str, cgroup: str) -> None:
    """Kill and remove what a further process has started, and nothing else of the container."""
    cgroups.kill(identifier, cgroup)
    cgroups.remove(identifier, cgroup)


def remove(claim: Claim) -> None:
    """Remove what is left of a container: processes, cgroup, state, files.

    Not by libcrun's delete, which needs the records that a crash may have kept from being written.
    """
    cgroups.kill(claim.identifier)
    freezer.thaw(claim.identifier)  # a frozen process would not even die
    try:
        cgroups.remove(claim.identifier)
    finally:
        claim.remove()


class _Console:
    """The socket that libcrun sends a terminal's master to: it connects by path, from this very process."""

    path = "console"

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.bind(self.path)
        self._socket.listen(1)

    def take_master(self) -> int:
        """The PTY's master: it was sent before libcrun's call returned, so nothing waits here."""
        fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # the socket module would take 6 ms to import
        connection = _socket.socket(fileno=fd)
        _, ancillary, _, _ = connection.recvmsg(64, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        connection.close()
        self._socket.close()
        os.unlink(self.path)
        return int.from_bytes(ancillary[0][2][:4], sys.byteorder)


def _set_user(spec: Spec, request: dict[str, Any], root: int) -> tuple[int, int, tuple[int, ...]]:
    """Resolve the user that was asked for in the files of the root, whose descriptor is closed; returns its numbers."""
    try:
        known: tuple[int, int, tuple[int, ...]] | None = request.get("numbers")
        if known is None:
            passwd, group = (rootfs.read_file(root, name) for name in ("etc/passwd", "etc/group"))
            user = resolve_user(request["user"], request["groups"], passwd, group)
            known = (user.uid, user.gid, tuple(user.additional_gids))
    finally:
        os.close(root)
    spec.set_user(*known)
    return known


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o644)
        file.write(content)
