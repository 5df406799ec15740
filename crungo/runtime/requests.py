"""The engine's side of the spawner: starting it, asking it, and the channel of one container or task.

Calls that make libcrun work (create, start, exec) block, and are made from a worker thread; events are awaited on the
loop. One of the two reads a channel at any time, never both.
"""

from __future__ import annotations

import _socket
import os
import signal
import sys

from crungo import errors
from crungo.runtime import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from crungo.paths import Roots

__all__ = ["Channel", "Request", "SpawnerProcess", "error_from", "require_root"]

START = "import sys; sys.path += sys.argv[3:]; from crungo.runtime.isolation import main; main()"
CONTROL_FD = 3
PASSED_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class SpawnerProcess:
    """A running spawner: our end of its control socket, and its process."""

    def __init__(self, control: _socket.socket, pid: int) -> None:
        self.control = control
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._last_words = ""
        self._lost = False

    @classmethod
    def start(cls, roots: Roots) -> SpawnerProcess:
        """Start one as a fresh interpreter: its size, and so the cost of its forks, is independent of ours.

        ``crungo-isolate`` sets it apart from us. posix_spawn(3) neither copies page tables nor runs Python code between
        fork and exec.
        """
        if not sys.executable:
            raise errors.HostError("start the helper process: sys.executable is not set: no Python interpreter to run")
        ours, theirs = wire.pair()
        here = os.path.dirname(os.path.abspath(__file__))
        package = os.path.dirname(os.path.dirname(here))
        path = [package, *(entry for entry in sys.path if os.path.isabs(entry) and entry != package)]
        isolate = os.path.join(here, "crungo-isolate")
        command = [sys.executable, "-I", "-S", "-c", START]
        try:
            pid = os.posix_spawn(
                isolate,
                [isolate, *command, roots.root, roots.run, *path],
                {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, 0, 2),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD),
                ],
                setsid=True,  # a terminal's signals and hang-up are the engine's business
                setsigmask=(),
                setsigdef=(
                    signal.SIGPIPE,
                    signal.SIGINT,
                    signal.SIGTERM,
                    signal.SIGHUP,
                    signal.SIGQUIT,
                    signal.SIGCHLD,
                ),
            )
        except OSError as error:
            ours.close()
            if isinstance(error, FileNotFoundError):
                hint = "build the package again: make build"
                raise errors.HostError(f"{isolate} is missing", hint=hint) from None
            raise
        finally:
            theirs.close()
        try:
            return cls(ours, pid)
        except OSError:  # no descriptor is left for it
            ours.close()  # which ends it
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:  # someone who waits for any child was faster
                pass
            raise

    def request(
        self, message: dict[str, Any], lent: Sequence[int] = (), *, given: Sequence[int] = ()
    ) -> tuple[Channel, Request]:
        """A request with a fresh channel, yet to be sent, and descriptors: first those given, then those lent.

        The given ones are the request's from now on; the lent ones stay the caller's, and open until it is sent.

        Raises:
            UsageError: the engine has been left.
        """
        try:
            if self.control.fileno() < 0:
                raise errors.UsageError("engine: used outside its `async with` block")
            ours, theirs = wire.pair()
        except BaseException:
            for fd in given:
                os.close(fd)
            raise
        return Channel(ours, self), Request(self, message, theirs, given, lent)

    def died(self) -> errors.SpawnerDied:
        """The error for a spawner that is gone, with its last words if it left any."""
        self._lost = True
        try:
            self.control.setblocking(False)
            message, _ = wire.recv(self.control)
        except OSError:
            message = None
        if message is not None:  # it comes once; others may ask, too
            self._last_words = message["message"]
        if not self._last_words:
            return errors.SpawnerDied("the helper process ended unexpectedly")
        return errors.SpawnerDied(f"the helper process failed: {self._last_words}")

    def end_requests(self) -> None:
        """Close the control socket: what the spawner still owns is killed, and it ends."""
        try:
            # An end without this word is a crash's, after which the spawner looks for more than its own.
            wire.send(self.control, {"op": "end"}, flags=_socket.MSG_DONTWAIT)
        except OSError:
            pass
        self.control.close()

    def finish(self, roots: Roots) -> None:
        """Have it end, and wait until it has and nothing is left. Blocks; engines do the same on their loop."""
        self.end_requests()
        if not self.reap():
            # Killed: the first thing that a successor does is to remove what it left.
            successor = SpawnerProcess.start(roots)
            successor.end_requests()
            successor.reap()

    def reap(self) -> bool:
        """Wait for the end of the process, and forget it; False when it did not end in good order.

        Someone who waits for any child may have been faster: then it did not if it was missed before.
        """
        orderly = not self._lost
        if self.pidfd < 0:
            return orderly
        try:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            orderly = ended is not None and ended.si_code == os.CLD_EXITED and ended.si_status == 0
        except ChildProcessError:
            pass
        os.close(self.pidfd)
        self.pidfd = -1
        return orderly


class Request:
    """A request, sent once; where that may block, from a thread that may."""

    def __init__(
        self,
        spawner: SpawnerProcess,
        message: dict[str, Any],
        channel: _socket.socket,
        given: Sequence[int],
        lent: Sequence[int],
    ) -> None:
        self._spawner = spawner
        self._message = message
        self._channel = channel
        self._given = list(given)
        self._lent = lent
        self._open = True

    def send(self, flags: int = 0) -> None:
        """Send it, unless that was done before; blocks while the spawner is busy with earlier ones."""
        if not self._open:
            return
        fds = [self._channel.fileno(), *self._given, *self._lent]
        sent = wire.send(self._spawner.control, self._message, fds, flags)
        self.close()
        if not sent:
            raise self._spawner.died()

    def send_if_room(self) -> bool:
        """Send it unless that would block: False when it would."""
        try:
            self.send(_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the spawner's descriptors: it has its own by now, or never will."""
        self._open = False
        self._channel.close()
        while self._given:
            os.close(self._given.pop())


class Channel:
    """Our end of the channel of one container or task. Closing it ends what it belongs to."""

    def __init__(self, sock: _socket.socket, spawner: SpawnerProcess) -> None:
        self._socket = sock
        self._spawner = spawner

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a request about what the channel belongs to; blocks while the spawner is busy."""
        if not wire.send(self._socket, message):
            raise self._spawner.died()

    def send_if_room(self, packet: bytes) -> bool:
        """Send a packet unless that would block: False when it would. Where nobody listens any more, it is lost."""
        try:
            wire.send_packet(self._socket, packet, flags=_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def receive_text(self) -> dict[str, int | str]:
        """Take the next event, one of text, when the channel is readable.

        Raises:
            ValueError: it is malformed.
        """
        message = wire.recv_text(self._socket)
        if message is None:
            raise self._spawner.died()
        return message

    def drain(self) -> bool:
        """Discard the events that are here; False at the end of the channel. For a channel without descriptors."""
        try:
            while self._socket.recv(1, _socket.MSG_DONTWAIT):
                pass
        except (BlockingIOError, ConnectionResetError):  # a reset: something of ours was not read; more may follow
            return True
        return False

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for the next event, in a worker thread or when the channel is readable."""
        message, fds = wire.recv(self._socket)
        if message is None:
            raise self._spawner.died()
        return message, fds

    def end(self) -> None:
        """Order the end; events still come, the last of them ``gone``."""
        try:
            self._socket.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # the other side was faster

    def close(self) -> None:
        self._socket.close()


def require_root() -> None:
    """Raises HostError where a spawner could do nothing."""
    if os.geteuid() != 0:
        raise errors.HostError("crungo needs root to make containers and unpack images", hint="run it with sudo")


def error_from(message: dict[str, Any]) -> errors.CrungoError:
    """The exception of an ``error`` event."""
    kind = message["kind"]
    if kind == "LibcrunError":
        return errors.LibcrunError(message["operation"], message["errno"], message["message"])
    found = getattr(errors, kind, errors.ContainerError)
    error: errors.CrungoError = found(message["message"], hint=message.get("hint"))
    return error
