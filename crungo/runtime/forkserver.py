"""``crungo-forks``, the process that forks what starts containers, and orders to it (``native/start.h``)."""

from __future__ import annotations

import _socket
import os
import sys

from crungo.runtime import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ForkServer", "encode_order", "start_server"]

SOCKET_FD = 3
SIGKILL = 9
TERMINAL, DEBUG, AWAIT_COMMAND = 1, 2, 4


def encode_order(
    *,
    identifier: str,
    directory: str,
    spec: bytes,
    user: str | None,
    groups: Sequence[str],
    nofile: tuple[int, int],
    terminal: bool,
    debug: bool,
    layers: Sequence[str] = (),
    rootfs: str | None = None,
    files: Mapping[str, bytes] | None = None,
    await_command: bool = False,
    init: int = 0,
    container_cgroup: str = "",
    cgroup: str = "",
    below: str = "",
) -> bytes:
    """What ``crungo_decode_start`` reads: numbers of eight bytes, and texts, each after its length and before a null.

    ``spec`` is the text of an OCI runtime specification; ``user`` and ``groups`` are resolved in the container's
    files; ``nofile`` is the RLIMIT_NOFILE, soft and hard, that it inherits.

    A container is started on an overlay of ``layers`` (lowest first) or on the directory ``rootfs``, as it is;
    ``files`` are made in its ``directory``; with ``await_command`` it waits for its command, on descriptor 4.

    A further process is started with ``init``, the process id of its container's first, in a new cgroup of the path
    ``cgroup``, below ``container_cgroup``, which is the container's in each tree. With ``below``, what the one has more
    than the other, it is libcrun that leads it there.
    """
    files = files or {}
    texts: list[str | bytes] = [identifier, directory, spec, user or "", rootfs or "", container_cgroup, cgroup, below]
    parts = [
        _number(TERMINAL * terminal | DEBUG * debug | AWAIT_COMMAND * await_command),
        _number(init),
        *map(_number, nofile),
        *map(_text, texts),
    ]
    for items in (groups, layers):
        parts += [_number(len(items)), *map(_text, items)]
    parts.append(_number(len(files)))
    for name, content in files.items():
        parts += [_text(name), _text(content)]
    return b"".join(parts)


class ForkServer:
    """The process that forks what starts containers. It ends with us, and what it has forked with it."""

    def __init__(self, state_root: str) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self._socket, self._pid = start_server("crungo-forks", state_root, kind=_socket.SOCK_STREAM)

    def fileno(self) -> int:
        """A descriptor that is readable when it has ended."""
        return self._socket.fileno()

    def order(self, order: bytes, fds: Sequence[int]) -> None:
        """Have something started.

        ``fds`` are the report, the three standard streams, what brings the command, and, perhaps, libcrun's log.

        Raises:
            BrokenPipeError, ConnectionResetError: it has ended.
        """
        data = len(order).to_bytes(4, sys.byteorder) + order
        sent = self._socket.sendmsg([data], wire.rights(fds), _socket.MSG_NOSIGNAL)
        if sent < len(data):
            self._socket.sendall(data[sent:], _socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Forget it, once it has ended, and wait for the end of what it was just starting; we must be a subreaper.

        That is its group, which processes leave (setsid(2)) before they are reported. It dies with the server, but not
        at the same moment: what it makes until then, nobody would look for.
        """
        self._socket.close()
        try:
            os.killpg(self._pid, SIGKILL)
            while True:
                os.waitpid(-self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # all are reaped, some perhaps as orphans


def start_server(name: str, *arguments: str, kind: int) -> tuple[_socket.socket, int]:
    """Start a program of ours that serves orders, with our process id as its first argument and its end of a socket as
    descriptor 3, in a group of its own: our end, and its process id.

    Raises:
        OSError: it cannot be started.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    try:
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        pid = os.posix_spawn(
            program,
            [name, str(os.getpid()), *arguments],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), SOCKET_FD)],
            setpgroup=0,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours, pid


def _number(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)


def _text(text: str | bytes) -> bytes:
    data = os.fsencode(text)
    return len(data).to_bytes(8, sys.byteorder) + data + b"\0"
