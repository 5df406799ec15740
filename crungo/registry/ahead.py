"""Connections that are opened before anybody has something to say.

To open one takes a round trip, and to look up a name takes another. Those to a registry are on their way while the
command still imports what is going to use them, and those for blobs while the manifest comes.

Nothing is sent on them here: which scheme they are used for is decided by who takes them.

Invariant: a socket belongs to its ``Ahead`` until it is taken, and to who took it from then on.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from crungo.registry.hosts import is_loopback
from crungo.registry.proxies import proxy_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from crungo.registry.urls import Url

    Address: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]

__all__ = ["Ahead", "alternating", "begin", "is_far", "known_addresses"]

_FRESH = 10.0  # seconds for which a server may be trusted to wait for a first request


class Ahead:
    """Connections under way, by host and port."""

    def __init__(self) -> None:
        self._openings: dict[tuple[str, int], list[_Opening]] = {}

    def open(self, host: str, port: int, count: int) -> None:
        """Begin to open so many connections; returns at once. What fails is found by who takes it."""
        self._openings.setdefault((host, port), []).append(_Opening(host, port, count))

    def count(self, host: str, port: int) -> int:
        """How many connections are under way, or wait, and were not taken yet."""
        return sum(opening.count() for opening in self._openings.get((host, port), []))

    async def take(self, host: str, port: int) -> tuple[list[Address], socket.socket] | None:
        """The addresses of a server, and a socket that connects, or is connected, to the first of them.

        None where nothing is under way that is of use.

        Raises:
            OSError: the name does not resolve.
        """
        openings = self._openings.get((host, port), [])
        while openings:
            opening = openings[0]
            if not opening.resolved.is_set():
                from anyio import to_thread  # whoever opens connections has not imported a loop yet

                await to_thread.run_sync(opening.resolved.wait, abandon_on_cancel=True)
            problem, opening.problem = opening.problem, None
            if problem is not None:
                raise problem
            sock = opening.take()
            if sock is not None:
                return opening.addresses, sock
            if opening in openings:  # another task may have seen the same meanwhile
                openings.remove(opening)
        return None

    def close(self) -> None:
        """Close what nobody has taken."""
        for openings in self._openings.values():
            for opening in openings:
                opening.close()
        self._openings.clear()


class _Opening:
    """Some connections to one server. ``addresses`` begins with the one that they go to."""

    def __init__(self, host: str, port: int, count: int) -> None:
        self.resolved = threading.Event()
        self.addresses: list[Address] = []
        self.problem: OSError | None = None
        self._name = (host, port)
        self._count = count
        self._sockets: list[socket.socket] = []
        self._changing = threading.Lock()
        self._until = 0.0
        try:
            self._connect(known_addresses(host, port))
        except (socket.gaierror, UnicodeError):  # a name; the resolver says what is wrong with it
            threading.Thread(target=self._resolve, name="resolve", daemon=True).start()
        else:
            self.resolved.set()

    def count(self) -> int:
        """How many there are, or will be when the name is known."""
        with self._changing:
            if not self.resolved.is_set():
                return self._count
            return len(self._sockets) if time.monotonic() < self._until else 0

    def take(self) -> socket.socket | None:
        with self._changing:
            while self._sockets:
                sock = self._sockets.pop()
                if time.monotonic() < self._until and not _is_closed(sock):
                    return sock
                sock.close()
        return None

    def close(self) -> None:
        with self._changing:
            self._count = 0
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()

    def _resolve(self) -> None:
        try:
            host, port = self._name
            self._connect(alternating(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            self.problem = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error))
        finally:
            self.resolved.set()

    def _connect(self, addresses: list[Address]) -> None:
        with self._changing:
            for place, address in enumerate(addresses):
                with suppress(OSError):
                    while len(self._sockets) < self._count:
                        self._sockets.append(begin(*address))
                if self._sockets:
                    addresses.insert(0, addresses.pop(place))
                    break
        self.addresses = addresses
        self._until = time.monotonic() + _FRESH


def begin(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    """A socket that connects to an address; it becomes writable when that is done, or has failed (``SO_ERROR``).

    Raises:
        OSError: it failed at once.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(address)
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, f"connection to {address[0]} failed")
    except BaseException:
        sock.close()
        raise
    return sock


def known_addresses(host: str, port: int) -> list[Address]:
    """The addresses of a host that is named by its address, which nobody has to be asked for.

    Raises:
        socket.gaierror, UnicodeError: it is a name.
    """
    numeric = host.encode("ascii")  # of a str, getaddrinfo would make what a name of any alphabet takes
    return alternating(socket.getaddrinfo(numeric, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))


def alternating(found: Iterable[tuple[Any, ...]]) -> list[Address]:
    """The addresses of a resolver's answers (``socket.getaddrinfo``), in its order, but families in turn: a broken IPv6
    costs one head start, not many."""
    addresses: list[Address] = [(family, address) for family, _, _, _, address in found]
    first = [entry for entry in addresses if entry[0] == addresses[0][0]]
    others = [entry for entry in addresses if entry[0] != addresses[0][0]]
    mixed: list[Address] = []
    while first or others:
        mixed += first[:1] + others[:1]
        first, others = first[1:], others[1:]
    return mixed


def is_far(url: Url) -> bool:
    """Whether it takes time to connect to the server of ``url``, and no proxy does that.

    Raises:
        ConfigurationError: the environment names a malformed proxy.
    """
    return not is_loopback(url.netloc) and proxy_of(url) is None


def _is_closed(sock: socket.socket) -> bool:
    """Whether the server has ended a connection on which nothing was said."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
