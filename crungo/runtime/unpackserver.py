"""``crungo-unpack``, the process that forks what unpacks layers, and orders to it (``programs/crungo-unpack.c``)."""

from __future__ import annotations

import _socket
import errno
import os
import sys

from crungo.runtime import wire
from crungo.runtime.forkserver import SIGKILL, start_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UnpackServer"]


class UnpackServer:
    """The process that forks what unpacks. It ends with us; its children are ours, to wait for and to kill."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self._socket, self._pid = start_server("crungo-unpack", kind=_socket.SOCK_SEQPACKET)

    def order(self, fds: Sequence[int], *, limit: int, size: int | None, user_xattrs: bool = False) -> int:
        """Have a layer unpacked: the process id of the child that does it.

        ``fds`` are the blob's file, the layer's empty directory, and the child's end of its channel. ``limit`` is the
        largest tar stream, in bytes; ``size`` is that of a blob that is complete: None where marks come over the
        channel. ``user_xattrs``: overlay's marks are ``user.`` attributes, as it wants them of those who are not the
        host's root.

        Raises:
            BrokenPipeError, ConnectionResetError: the server has ended, and has not seen the order.
            OSError: there is no room for another process, or the server was killed over it.
        """
        order = b"".join(
            number.to_bytes(length, sys.byteorder)
            for number, length in ((limit, 8), (size or 0, 8), (size is not None, 4), (user_xattrs, 4))
        )
        self._socket.sendmsg([order], wire.rights(fds), _socket.MSG_NOSIGNAL)
        answer = self._socket.recv(4)
        if not answer:
            # It may have forked a child, which nobody knows, and which would write beside that of another try.
            try:
                os.killpg(self._pid, SIGKILL)
            except ProcessLookupError:
                pass
            raise OSError(errno.EIO, "what forks it was killed")
        pid = int.from_bytes(answer, sys.byteorder, signed=True)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def close(self) -> None:
        """Forget it, once it has ended."""
        self._socket.close()
