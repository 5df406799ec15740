"""The spawner: the small, single-threaded process that owns containers and does what needs privilege.

It waits in one epoll for: requests, its channels, its children's reports, and the end of processes (as pidfds, so
that no signal handler is needed). Whatever may take time or run foreign code happens in a fork of it. It imports next
to nothing, because every container start forks it.

Ownership is a descriptor: the engine's end of a channel. When that closes, the container is killed and removed; when
the control socket closes, the engine is gone and the spawner ends with its last container.
"""

from __future__ import annotations

import _socket
import gc
import os
import resource
import select
import sys

from crungo.runtime import cgroups, child, syscalls, wire
from crungo.runtime.forkserver import ForkServer, encode_order
from crungo.runtime.reports import failure
from crungo.runtime.state import Places, remove_tree
from crungo.runtime.tasks import Container, Execution, Unpacking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from crungo.runtime.state import Claim
    from crungo.runtime.tasks import Task
    from crungo.runtime.unpackserver import UnpackServer

__all__ = ["IGNORED", "Spawner"]

SIGKILL, SIGCHLD = 9, 17
ENGINE_END = 1000
"""Milliseconds that the process of an engine which left without a word may take to end."""
IGNORED = (1, 2, 3, 13, 15, 25)
"""SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM: its end is the closing of a socket. SIGXFSZ: Python ignores it."""


class Spawner:
    """The loop, and what all tasks share."""

    def __init__(self, control: _socket.socket, root: str, run: str) -> None:
        self.control = control
        self.root = root
        self.places = Places(root, run)
        self.tasks: set[Task] = set()
        self.containers: dict[str, Container] = {}
        self.hierarchies = cgroups.hierarchies()
        self.unpackings: set[Unpacking] = set()
        self._poll = select.epoll()
        self._watched: dict[int, Callable[[], object]] = {}
        self._children: set[int] = set()  # those with a pidfd of their own
        self._open = True
        self._orderly = False
        self._engine = _peer(control)
        self.places.make()
        self.places.make_work()
        self._forks: ForkServer | None = None
        self._unpacks: UnpackServer | None = None
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Every container costs a few descriptors here; the container itself gets what the caller had.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.limits[1], self.limits[1]))
        gc.collect()
        gc.freeze()  # what lives now lives forever: a collection in a child would only copy its pages

    def serve(self) -> None:
        """Answer until nobody asks and nothing runs."""
        self.watch(self.control.fileno(), self._on_control)
        orphans = syscalls.signal_fd(SIGCHLD)
        self.watch(orphans, lambda: _drain(orphans))
        # A fork of the engine's process may keep our sockets open beyond its end.
        self.watch(self._engine, self._on_end)
        self._fork_server()
        self._sweep()
        while self._open or self.tasks or self._children:
            batch = [(fd, self._watched[fd]) for fd, _ in self._poll.poll()]
            for fd, handler in batch:
                # An earlier event of the batch may have closed it, and its number may already be another's.
                if self._watched.get(fd) is handler:
                    handler()
            self._reap_orphans()
        remove_tree(self.places.work)
        if not self._orderly:
            self._sweep_store()

    def _reap_orphans(self) -> None:
        """Reap what nobody waits for: processes of libcrun's whose parent, a child of ours, ended first.

        A zombie of a container's pid namespace that is left would keep its init from ever ending (pid_namespaces(7)).
        """
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            found_more = [task.read_report() for task in list(self.tasks)]
            if any(found_more):
                continue  # it may have been the process that an unread report was about
            if found.si_pid in self._children:
                return  # its own event is due, and brings us here again
            if tasks := [task for task in self.tasks if task.pid == found.si_pid and task.pidfd >= 0]:
                tasks[0].settle()  # no event is due where a tracer has let go of it
                if tasks[0].pidfd >= 0:
                    return  # the end of the child that made it is
                continue
            os.waitpid(found.si_pid, 0)

    def watch(self, fd: int, handler: Callable[[], object], events: int = select.EPOLLIN) -> None:
        self._watched[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def close(self, fd: int) -> None:
        """Stop watching a descriptor, and close it."""
        if fd >= 0:
            self.unwatch(fd)
            os.close(fd)

    def fork(self, work: Callable[[], None], then: Callable[[int], None]) -> int:
        """Run ``work`` in a child, and ``then`` with its exit code when it has ended; the child's pidfd until then."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                syscalls.reset_signals()
                # Only now: we may hold more than the caller's limit allows.
                resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
                work()
                code = 0
            finally:
                os._exit(code)
        return self.adopt(pid, then)

    def adopt(self, pid: int, then: Callable[[int], None]) -> int:
        """Watch a child until its end, and call ``then`` with its exit code; its pidfd until then.

        Raises:
            OSError: no descriptor is left; the child has been killed.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children.add(pid)

        def ended() -> None:
            self.close(pidfd)
            _, status = os.waitpid(pid, 0)
            self._children.discard(pid)
            then(os.waitstatus_to_exitcode(status))

        self.watch(pidfd, ended)
        return pidfd

    def start(self, request: dict[str, Any], directory: str, fds: list[int], **rest: Any) -> None:
        """Have what is requested started, a container or a further process in one; ``directory`` is the container's.

        ``fds`` are those of ``ForkServer.order``, and ``rest`` what ``encode_order`` takes of the one or the other.
        """
        order = encode_order(
            identifier=request["id"],
            directory=directory,
            spec=request["spec"],
            user=request["user"],
            groups=request["groups"],
            nofile=self.limits,
            terminal=request["tty"],
            debug=request["debug"],
            **rest,
        )
        try:
            self._fork_server().order(order, fds)
        except (BrokenPipeError, ConnectionResetError):
            self._on_forks_end()
            self._fork_server().order(order, fds)

    def unpack(self, fds: Sequence[int], **options: Any) -> int:
        """Have a layer unpacked: the child's process id. The arguments are those of ``UnpackServer.order``."""
        from crungo.runtime.unpackserver import UnpackServer  # most spawners need none

        if self._unpacks is not None:
            try:
                return self._unpacks.order(fds, **options)
            except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                self._unpacks.close()
        self._unpacks = UnpackServer()
        return self._unpacks.order(fds, **options)

    def _fork_server(self) -> ForkServer:
        """The fork server, watched; another one, where it was killed."""
        if self._forks is None:
            self._forks = ForkServer(self.places.state)
        if self._forks.fileno() not in self._watched:
            self.watch(self._forks.fileno(), self._on_forks_end)
        return self._forks

    def _on_forks_end(self) -> None:
        """Somebody has killed it, and so what it was just starting."""
        if self._forks is not None:
            self.unwatch(self._forks.fileno())
            self._forks.close()
            self._forks = None
        for task in list(self.tasks):
            task.abandon()

    def _on_control(self) -> None:
        message, fds = wire.recv(self.control)
        if message is None:
            self._on_end()
            return
        if message["op"] == "end":
            self._orderly = True
            return
        channel = _socket.socket(fileno=fds.pop(0))
        kind = {"create": Container, "exec": Execution, "unpack": Unpacking}[message["op"]]
        try:
            kind(self, channel, message, fds)
        except Exception as error:
            wire.send(channel, failure(error))
            wire.send(channel, {"event": "gone", "problem": None})
            channel.close()
        finally:
            for fd in fds:
                os.close(fd)

    def _on_end(self) -> None:
        """The engine has left, or its process has ended."""
        self._open = False
        self.unwatch(self.control.fileno())
        self.unwatch(self._engine)
        for task in list(self.tasks):
            task.doom()
        for unpacking in self.unpackings:
            unpacking.end()

    def _sweep_store(self) -> None:
        """Remove what a crashed engine was making in the store; its locks end with its process."""
        poll = select.poll()
        poll.register(self._engine, select.POLLIN)
        poll.poll(ENGINE_END)
        from crungo.runtime.crashes import sweep

        sweep(self.root)

    def _sweep(self) -> None:
        """Remove what owners that were killed, together with their spawner, have left."""
        self.places.sweep_work()
        for claim in self.places.leftovers():
            self._remove(claim)

    def _remove(self, claim: Claim) -> None:
        self.fork(lambda: child.remove(claim), lambda _code: claim.release())


def _peer(sock: _socket.socket) -> int:
    """A pidfd of the process on the other side, or of one that is known to have ended."""
    pid = int.from_bytes(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)  # readable for ever
        return reader


def _drain(fd: int) -> None:
    os.read(fd, 4096)
