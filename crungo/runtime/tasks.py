"""What the spawner does for an engine, each a state machine fed by the spawner's loop: containers, further processes in
them, and the unpacking of layers.

Invariant: whatever state a task is in, the closing of its channel leads to its end, and its end to ``gone``, last.
"""

from __future__ import annotations

import _socket
import os
import select

from crungo.errors import ContainerError
from crungo.runtime import cgroups, child, freezer, syscalls, wire
from crungo.runtime.reports import failure, report_of
from crungo.runtime.state import Budget, Overrun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crungo.runtime.spawner import Spawner

__all__ = ["Container", "Execution", "Task", "Unpacking"]

SIGKILL = 9
QUICK_ENTRIES = 100


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
        if self.report is not None and self.pidfd < 0:
            # What makes the process may be waiting for it, and it for anything. The fork server kills the one, and
            # reports that; the other is no more than a part of what is cleaned up.
            self.report.shutdown(_socket.SHUT_WR)
        self._kill()
        self.settle()

    def launch(self, request: dict[str, Any], directory: str, fds: list[int], **rest: Any) -> None:
        """Have the process made; where that fails, the owner is told, and ends the task.

        ``fds``: its standard streams, what brings its command (anything where nothing does) and, perhaps, its log.
        """
        try:
            self._order(request, directory, fds, **rest)
        except Exception as error:
            self.working = False
            self._fail(failure(error))

    def _order(self, request: dict[str, Any], directory: str, fds: list[int], **rest: Any) -> None:
        ours, theirs = wire.pair()
        try:
            self.spawner.start(request, directory, [theirs.fileno(), *fds], **rest)
            self.spawner.watch(ours.fileno(), self.read_report)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.report = ours

    def read_report(self) -> bool:
        """Take what has been reported so far; whether there was anything.

        The child that makes the process, the fork server and the process itself hold the other end. The last to close
        it is the server, once the child is reaped and the process is ours, or the process, with its exec.
        """
        found = False
        while self.report is not None and _readable(self.report.fileno()):
            found = True
            try:
                self._take_report(*wire.recv_packet(self.report))
            except Exception as error:
                # There was no room for its descriptors; or a process with CAP_SYS_PTRACE has written it, in the name of
                # one that is about to join it in its container. The others shall not suffer from either.
                self._fail(failure(error))
                self.abandon()
        return found

    def _take_report(self, packet: bytes, fds: list[int]) -> None:
        if not packet:
            self._on_report_end()
            return
        try:
            report = report_of(packet)
            if report is None:
                self.abandon()
            elif not isinstance(report, int):
                self._fail(report)
            elif self.pidfd >= 0 or not fds:
                raise ContainerError("create container: its helper reports what cannot be")
            else:
                self.tell({"event": "created", "pid": report}, tuple(fds))
                self.pid, self.pidfd = report, fds.pop(0)
                self.spawner.watch(self.pidfd, self.settle)
                if self.doomed:
                    self._kill()
        finally:
            for fd in fds:
                os.close(fd)

    def abandon(self) -> None:
        """What makes the process was killed. What it has made may be waiting for it, with the report open."""
        if self.report is not None:
            self._fail(failure(ContainerError("create container: its helper was killed")))
            self._on_report_end()

    def _on_report_end(self) -> None:
        assert self.report is not None
        self.spawner.unwatch(self.report.fileno())
        self.report.close()
        self.report = None
        self.working = False
        if not self.failed and self.pidfd >= 0:
            self.tell({"event": "started"})
        else:
            self._fail(failure(ContainerError("create container: its helper was killed")))
            self._kill()
        self.settle()

    def _fail(self, event: dict[str, Any]) -> None:
        if not self.failed:  # the first is the reason, what follows may be no more than its result
            self.failed = True
            self.tell(event)

    def _on_channel(self) -> None:
        message, fds = wire.recv(self.channel)
        for fd in fds:
            os.close(fd)
        if message is None:
            self.doom()
        else:
            self.command(message)

    def command(self, message: dict[str, Any]) -> None:
        """A request about this task, on its channel."""

    def _kill(self) -> None:
        if self.pidfd >= 0:
            try:
                syscalls.send_signal(self.pidfd, SIGKILL)
            except ProcessLookupError:
                pass

    def settle(self) -> None:
        """Take the step that the state allows: reap the process, then clean up, then go."""
        if self.working:
            return  # init is not our child before the child that made it has ended
        if self.pidfd >= 0:
            dead = _readable(self.pidfd)
            try:
                ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:  # a forged report, or the victim of one
                ended, dead = None, True
            if ended is None and not dead:
                return
            if ended is None:
                # It has ended, but a process of the container traces it: nobody else may reap it before that lets go,
                # which is a SIGCHLD. Its descriptor would wake us all the time until then.
                self.spawner.unwatch(self.pidfd)
                if not self.doomed:
                    return
            self.spawner.close(self.pidfd)
            self.pidfd = -1
            signaled = ended is None or ended.si_code != os.CLD_EXITED
            status = SIGKILL if ended is None else ended.si_status
            self.tell({"event": "exited", "code": 128 + status if signaled else status, "signal": status * signaled})
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
        spawner.containers[self.claim.identifier] = self
        self.launch(
            request,
            self.claim.directory,
            fds,
            layers=request["layers"] or (),
            rootfs=request["rootfs"],
            files=request["files"],
            await_command=request["await_command"],
        )

    def command(self, message: dict[str, Any]) -> None:
        if message["op"] == "update":
            self._update(message["resources"], message["reply"])

    def _update(self, resources: bytes, reply: str) -> None:
        """Change limits; the child itself replies, by an event of that name."""

        def ended(code: int) -> None:
            if code and self in self.spawner.tasks:
                self.tell({"event": reply, "error": failure(ContainerError("update container: libcrun failed"))})

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
        del self.spawner.containers[self.claim.identifier]
        self.finish(None if code == 0 else f"container {self.claim.identifier}: not all of it could be removed")


class Execution(Task):
    """A further process in a container; what it started ends with its channel, not with itself."""

    serial = 0

    def __init__(self, spawner: Spawner, channel: _socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        container = spawner.containers.get(request["id"])
        if container is None or container.pidfd < 0:
            raise ContainerError(f"container {request['id']}: it is not running")
        super().__init__(spawner, channel)
        Execution.serial += 1
        self.identifier = request["id"]
        self.cgroup = f"/exec-{os.getpid()}-{Execution.serial}"
        self.tree, unified = cgroups.tree_of_executions(spawner.hierarchies)
        container_cgroup = cgroups.path_of(self.identifier)
        self.directory = self.tree + container_cgroup + self.cgroup
        self.launch(
            request,
            container.claim.directory,
            fds,
            init=container.pid,
            container_cgroup=container_cgroup,
            cgroup=self.directory,
            below=self.cgroup if unified else "",
        )

    def _kill(self) -> None:
        super()._kill()
        freezer.kill_frozen(self.identifier, self.directory)

    def clean_up(self) -> None:
        if not self.doomed:
            self.working = False  # `doom` comes here again
            return
        try:
            cgroups.remove_empty(self.identifier, [self.tree], self.cgroup)
        except OSError:  # something that it started is still there
            self.spawner.fork(
                lambda: child.end_execution(self.identifier, self.cgroup),
                lambda code: self.finish(None if code == 0 else "exec: not all that it started could be ended"),
            )
        else:
            self.finish(None)


class Unpacking:
    """One layer's unpacking. Its child alone reads the channel; how the child ended is told here, last.

    The child is not trusted to end: it is killed when the engine's end of the channel closes, or no longer sends.
    """

    def __init__(self, spawner: Spawner, channel: _socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        self.spawner = spawner
        self.channel = channel
        self.pidfd = -1
        subject = "its directory"
        try:
            # By its path, hence in our mount namespace: the child clones the mount, which it could of no other.
            directory = os.open(request["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                subject = "its process"
                wanted = (fds[0], directory, channel.fileno())
                pid = spawner.unpack(wanted, limit=request["limit"], size=request["size"])
                self.pidfd = spawner.adopt(pid, self._ended)
            finally:
                os.close(directory)
        except OSError as error:
            reason = f"{subject}: {error.strerror}"
            wire.send_text(channel, {"event": "error", "name": "", "reason": reason, "errno": error.errno or 0})
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

    def _ended(self, code: int) -> None:
        wire.send_text(self.channel, {"event": "ended", "code": code})
        self.spawner.unwatch(self.channel.fileno())
        self.channel.close()
        self.spawner.unpackings.discard(self)


def _readable(fd: int) -> bool:
    """Whether a read would not wait; poll, because select cannot take descriptors above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
