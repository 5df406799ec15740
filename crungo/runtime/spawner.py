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

from crungo.errors import ContainerError
from crungo.runtime import cgroups, child, freezer, syscalls, wire
from crungo.runtime.libcrun import Handlers
from crungo.runtime.state import Budget, Overrun, Places, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from crungo.runtime.state import Claim

__all__ = ["IGNORED", "Spawner"]

SIGKILL, SIGCHLD = 9, 17
USERS_LIMIT = 1000
QUICK_ENTRIES = 100
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
        self.users: dict[tuple[str | None, ...] | None, tuple[int, int, tuple[int, ...]]] = {}
        self.hierarchies = cgroups.hierarchies()
        self.unpackings: set[Unpacking] = set()
        self._poll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._children: set[int] = set()  # those with a pidfd of their own
        self._open = True
        self._orderly = False
        self._engine = _peer(control)
        self.places.make()
        self.handlers = _load_handlers(self.places)
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
        self._sweep()
        while self._open or self.tasks or self._children:
            batch = [(fd, self._watched[fd]) for fd, _ in self._poll.poll()]
            for fd, handler in batch:
                # An earlier event of the batch may have closed it, and its number may already be another's.
                if self._watched.get(fd) is handler:
                    handler()
            self._reap_orphans()
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
            for task in list(self.tasks):
                task.read_report()  # it may be the process that an unread report is about
            if found.si_pid in self._children or any(task.pid == found.si_pid for task in self.tasks):
                return  # its own event is due, and brings us here again
            os.waitpid(found.si_pid, 0)

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
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
                for signum in IGNORED:
                    syscalls.set_signal(signum, ignored=False)
                syscalls.unblock_signals()
                resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
                work()
                code = 0
            finally:
                os._exit(code)
        pidfd = os.pidfd_open(pid)
        self._children.add(pid)

        def ended() -> None:
            self.close(pidfd)
            _, status = os.waitpid(pid, 0)
            self._children.discard(pid)
            then(os.waitstatus_to_exitcode(status))

        self.watch(pidfd, ended)
        return pidfd

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
            wire.send(channel, child.failure(error))
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
        for claim in self.places.leftovers():
            self._remove(claim)

    def _remove(self, claim: Claim) -> None:
        self.fork(lambda: child.remove(claim), lambda _code: claim.release())


class Task:
    """What a container and an execution have in common: a channel, a process, an exit.

    creating ─► created ─► started ─► exited ─► gone, with an end from every state.
    """

    def __init__(self, spawner: Spawner, channel: _socket.socket) -> None:
        self.spawner = spawner
        self.channel = channel
        self.pid = 0
        self.pidfd = -1
        self.report: _socket.socket | None = None
        self.status = -1  # our end of the pipe on which a failed exec is told
        self.doomed = False
        self.working = True  # a child is at work for this task
        self.failed = False
        spawner.tasks.add(self)
        spawner.watch(channel.fileno(), self._on_channel)

    def tell(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        wire.send(self.channel, message, fds)

    def doom(self) -> None:
        """The owner is gone, or wants it gone."""
        self.doomed = True
        self.spawner.unwatch(self.channel.fileno())
        self._kill()
        self._settle()

    def launch(self, work: Callable[[_socket.socket], None], fds: list[int]) -> None:
        """Fork the child that makes the process.

        ``fds``: its standard streams, what brings its command (anything where nothing does) and, perhaps, its log.
        """
        ours, theirs = wire.pair()
        self.status, status = os.pipe2(os.O_CLOEXEC)
        spawner = os.getpid()

        def body() -> None:
            syscalls.end_with_parent(spawner)  # nobody would own what it makes
            child.arrange([*fds[:3], status, fds[3], theirs.fileno(), *fds[4:]])
            report = _socket.socket(fileno=child.REPORT_FD)
            try:
                work(report)
            except BaseException as error:
                wire.send(report, child.failure(error))
                raise

        def ended(code: int) -> None:
            self.read_report()  # what the child said last may still be unread
            self.spawner.unwatch(ours.fileno())
            self.report = None
            ours.close()
            self.working = False
            if code and not self.failed:
                self._fail(child.failure(ContainerError(f"create container: its helper ended with {code}")))
            if self.failed:
                self._kill()
            self._settle()

        try:
            self.spawner.fork(body, ended)
            self.report = ours
            self.spawner.watch(ours.fileno(), self.read_report)
        finally:
            theirs.close()
            os.close(status)

    def read_report(self) -> None:
        """Take what the child has reported so far."""
        while self.report is not None and _readable(self.report.fileno()):
            message, fds = wire.recv(self.report)
            if message is None:
                self.spawner.unwatch(self.report.fileno())
                return
            if message["event"] == "error":
                # libcrun does not say why an exec failed; the process that did it has.
                told = os.read(self.status, 4096) if _readable(self.status) else b""
                self._fail(_exec_failure(told) if told else message)
                continue
            self.pid, self.pidfd = message["pid"], fds[0]
            self.created(message)
            self.tell(message, tuple(fds))
            for fd in fds[1:]:
                os.close(fd)
            self.spawner.watch(self.pidfd, self._settle)
            self.spawner.watch(self.status, self._on_status)
            if self.doomed:
                self._kill()

    def _fail(self, message: dict[str, Any]) -> None:
        self.failed = True
        self.tell(message)

    def _on_status(self) -> None:
        """The exec happened (end of file), or failed (errno, and what libcrun said)."""
        data = os.read(self.status, 4096)
        self.spawner.close(self.status)
        self.status = -1
        if data:
            self._fail(_exec_failure(data))
        else:
            self.tell({"event": "started"})

    def _on_channel(self) -> None:
        message, fds = wire.recv(self.channel)
        for fd in fds:
            os.close(fd)
        if message is None:
            self.doom()
        else:
            self.command(message)

    def created(self, message: dict[str, Any]) -> None:
        """The process exists."""

    def command(self, message: dict[str, Any]) -> None:
        """A request about this task, on its channel."""

    def _kill(self) -> None:
        if self.pidfd >= 0:
            try:
                syscalls.send_signal(self.pidfd, SIGKILL)
            except ProcessLookupError:
                pass

    def _settle(self) -> None:
        """Take the step that the state allows: reap the process, then clean up, then go."""
        if self.working:
            return  # init is not our child before the child that made it has ended
        if self.pidfd >= 0:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            if ended is None:
                return
            if self.status >= 0 and _readable(self.status):
                self._on_status()
            self.spawner.close(self.pidfd)
            self.pidfd = -1
            signaled = ended.si_code != os.CLD_EXITED
            code = 128 + ended.si_status if signaled else ended.si_status
            self.tell({"event": "exited", "code": code, "signal": ended.si_status if signaled else 0})
        if self.status >= 0:
            self.spawner.close(self.status)
            self.status = -1
        self.working = True  # for good: nothing follows the clean-up
        self.clean_up()

    def clean_up(self) -> None:
        """Remove what the task leaves; ends in :meth:`finish`."""
        self.finish(None)

    def finish(self, problem: str | None) -> None:
        """The last word, and the end of the channel."""
        self.tell({"event": "gone", "problem": problem})
        self.spawner.unwatch(self.channel.fileno())
        self.channel.close()
        self.spawner.tasks.discard(self)


class Container(Task):
    """A container and its init process."""

    def __init__(self, spawner: Spawner, channel: _socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        self.claim = spawner.places.claim(request["id"], request["name"])
        super().__init__(spawner, channel)
        # The files of an image do not change: one look at its users is enough.
        self.user = None if request["layers"] is None else (*request["layers"], request["user"], *request["groups"])
        request["numbers"] = spawner.users.get(self.user)
        self.launch(lambda report: child.create(request, self.claim, spawner.handlers, report), fds)

    def created(self, message: dict[str, Any]) -> None:
        if self.user is not None and len(self.spawner.users) < USERS_LIMIT:
            self.spawner.users[self.user] = message["user"]

    def command(self, message: dict[str, Any]) -> None:
        if message["op"] == "start":

            def ended(code: int) -> None:
                if code:
                    self._fail(child.failure(ContainerError("start container: libcrun failed")))
                    self._kill()

            self.spawner.fork(lambda: child.start(self.claim.places, self.claim.identifier), ended)
        elif message["op"] == "update":
            self._update(message["resources"], message["reply"])

    def _update(self, resources: bytes, reply: str) -> None:
        """Change limits; the child itself replies, by an event of that name."""

        def ended(code: int) -> None:
            if code and self in self.spawner.tasks:
                self.tell({"event": reply, "error": child.failure(ContainerError("update container: libcrun failed"))})

        self.spawner.fork(lambda: child.update(self.claim, resources, reply, self.channel), ended)

    def _kill(self) -> None:
        super()._kill()
        freezer.thaw(self.claim.identifier)  # a frozen process would not even die

    def clean_up(self) -> None:
        try:
            # Most containers leave next to nothing, which is gone in less time than a fork takes.
            cgroups.remove_empty(self.claim.identifier, self.spawner.hierarchies)
            self.claim.remove(Budget(QUICK_ENTRIES))
        except (OSError, Overrun):
            self.spawner.fork(lambda: child.remove(self.claim), self._removed)
        else:
            self._removed(0)

    def _removed(self, code: int) -> None:
        self.claim.release()
        self.finish(None if code == 0 else f"container {self.claim.identifier}: not all of it could be removed")


class Execution(Task):
    """A further process in a container; what it started ends with its channel, not with itself."""

    serial = 0

    def __init__(self, spawner: Spawner, channel: _socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        super().__init__(spawner, channel)
        Execution.serial += 1
        self.identifier = request["id"]
        self.cgroup = f"/exec-{os.getpid()}-{Execution.serial}"
        self.launch(lambda report: child.execute(request, self.cgroup, spawner.places, spawner.handlers, report), fds)

    def clean_up(self) -> None:
        if not self.doomed:
            self.working = False  # `doom` comes here again
            return
        self.spawner.fork(
            lambda: child.end_execution(self.identifier, self.cgroup),
            lambda code: self.finish(None if code == 0 else "exec: not all that it started could be ended"),
        )


class Unpacking:
    """One layer's unpacking. Its child alone reads the channel; how the child ended is told here, last.

    The child is not trusted to end: it is killed when the engine's end of the channel closes, or no longer sends.
    """

    def __init__(self, spawner: Spawner, channel: _socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        self.spawner = spawner
        self.channel = channel
        self.pidfd = -1
        try:
            # By its path, hence in our mount namespace: the child clones the mount, which it could of no other.
            directory = os.open(request["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self.pidfd = spawner.fork(lambda: self._unpack(fds[0], directory, request["limit"]), self._ended)
            finally:
                os.close(directory)
        except OSError as error:
            text = f"layer directory: {error.strerror}"
            wire.send_text(channel, {"event": "error", "message": text, "errno": error.errno or 0})
            channel.close()
            return
        spawner.unpackings.add(self)
        spawner.watch(channel.fileno(), self.end, select.EPOLLRDHUP)

    def end(self) -> None:
        """Kill the child."""
        self.spawner.unwatch(self.channel.fileno())
        try:
            syscalls.send_signal(self.pidfd, SIGKILL)
        except ProcessLookupError:
            pass

    def _unpack(self, blob: int, directory: int, limit: int) -> None:
        from crungo.runtime import unpack

        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        child.arrange([null, null, null, blob, directory, self.channel.fileno()])
        unpack.run(3, 4, _socket.socket(fileno=5), limit=limit)

    def _ended(self, code: int) -> None:
        wire.send_text(self.channel, {"event": "ended", "code": code})
        self.spawner.unwatch(self.channel.fileno())
        self.channel.close()
        self.spawner.unpackings.discard(self)


def _load_handlers(places: Places) -> Handlers:
    """libcrun loads handler libraries from a folder; ours is the extension module itself."""
    from crungo.runtime import _native

    folder = f"{places.run}/handlers-{os.getpid()}"
    os.mkdir(folder, 0o700)
    try:
        os.symlink(os.path.abspath(_native.__file__), f"{folder}/crungo.so")
        return Handlers(folder)
    finally:
        remove_tree(folder)


def _peer(sock: _socket.socket) -> int:
    """A pidfd of the process on the other side, or of one that is known to have ended."""
    pid = int.from_bytes(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)  # readable for ever
        return reader


def _exec_failure(data: bytes) -> dict[str, Any]:
    """The event for what was told on a status descriptor: errno, and perhaps a text."""
    number = int.from_bytes(data[:4], sys.byteorder, signed=True)
    return {"event": "error", "kind": "exec", "errno": number, "message": data[4:].decode(errors="replace")}


def _drain(fd: int) -> None:
    os.read(fd, 4096)


def _readable(fd: int) -> bool:
    """Whether a read would not wait; poll, because select cannot take descriptors above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
