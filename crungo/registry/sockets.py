"""The sockets below the http client: connecting, TLS and reading, for asyncio and trio alike.

A backend of httpcore that works on non-blocking sockets directly, for the sake of bulk data. Measured on loopback,
one core: httpx with the stock backend moves about 550 MB/s (64 KiB per read, each through a transport's buffer and a
deadline of its own), the same with reads of 256 KiB 1,150 MB/s, this one 2,500 MB/s. A read tries the socket first
and waits, with a deadline, only where there is nothing; TLS records are collected into one buffer before they are
handed up.

A server may end a connection that is kept for further requests just when one is sent. That is no failure: the stream
tells the pool that the connection is not available after all, which sends the request again over another one.

Invariant: one task reads a stream at a time, and every wait ends by data, by its deadline, by cancellation or by
``aclose``.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import typing

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore

from crungo.openfiles import LIMITS
from crungo.registry.ahead import alternating, begin, known_addresses

if typing.TYPE_CHECKING:
    from collections.abc import Iterable

    from crungo.registry.ahead import Address, Ahead

__all__ = ["SocketBackend"]

_READ_SIZE = 256 << 10  # 128 KiB to 256 KiB is best: larger pieces leave the second-level cache before they are hashed
_AT_ONCE = 4  # reads that find bytes before the loop gets its turn: 1 MiB
_HEAD_START = 0.25  # seconds for each address before the next is tried as well (RFC 8305)


class SocketStream(httpcore.AsyncNetworkStream):
    """A connected TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reads = 0  # since anybody else had a turn
        self._poll: select.poll | None = None
        self._answered = False  # something has come since the last write
        self._kept = False  # what was written last follows an answer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Whatever has arrived, up to 256 KiB; empty at the end of the stream. Waits at most ``timeout`` seconds.

        Raises ``ConnectionNotAvailable`` where the server has ended a kept connection without a word to the request.
        """
        self._reads += 1
        if self._reads > _AT_ONCE:
            # The loop gets its turn even when data is always there, or sixteen fast streams would starve all else.
            self._reads = 0
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            data = await self._next(timeout)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(f"no data for {timeout:g} seconds") from error
        except (OSError, ValueError, anyio.ClosedResourceError) as error:
            if isinstance(error, OSError):  # and not by us
                self._check_kept()
            raise httpcore.ReadError(str(error)) from error
        if data:
            self._answered = True
        else:
            self._check_kept()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``; each wait for room takes at most ``timeout`` seconds."""
        if self._answered:
            self._kept, self._answered = True, False
        rest = memoryview(buffer)
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    await self._wait(anyio.wait_writable, timeout)
                except ssl.SSLWantReadError:
                    await self._wait(anyio.wait_readable, timeout)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(f"could not send for {timeout:g} seconds") from error
        except (OSError, ValueError, anyio.ClosedResourceError) as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close at once; a task that waits on the stream wakes up with an error."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The same connection after a TLS handshake of at most ``timeout`` seconds; this stream is used up."""
        try:
            # Of a socket with a failure, ssl would leave the descriptor to the garbage collector.
            _raise_failure(self._socket, "TLS")
            secured = ssl_context.wrap_socket(
                self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            self._socket.close()
            raise httpcore.ConnectError(str(error)) from error
        stream = TLSStream(secured)
        try:
            with anyio.fail_after(timeout):
                await stream.handshake()
        except BaseException as error:
            secured.close()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout(f"no TLS handshake within {timeout:g} seconds") from error
            if isinstance(error, OSError):
                raise httpcore.ConnectError(str(error)) from error
            raise
        return stream

    def get_extra_info(self, info: str) -> typing.Any:
        """httpcore asks for ``ssl_object`` (None without TLS) and ``is_readable`` (of idle connections)."""
        match info:
            case "ssl_object":
                return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
            case "is_readable":
                return self._is_readable()
            case "socket":
                return self._socket
            case _:
                return None

    def _receive(self) -> bytes:
        return self._socket.recv(_READ_SIZE)

    async def _next(self, timeout: float | None) -> bytes:
        while True:
            try:
                return self._receive()
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._wait(anyio.wait_readable, timeout)
            except ssl.SSLWantWriteError:
                await self._wait(anyio.wait_writable, timeout)

    def _check_kept(self) -> None:
        """The connection has ended: was it one that was kept, and had it ended before the request came?"""
        if self._kept and not self._answered:
            raise httpcore.ConnectionNotAvailable from None

    async def _wait(
        self, wait: typing.Callable[[socket.socket], typing.Awaitable[None]], timeout: float | None
    ) -> None:
        self._reads = 0
        with anyio.fail_after(timeout):
            await wait(self._socket)

    def _is_readable(self) -> bool:
        """On an idle connection this means that the server has closed it."""
        if self._socket.fileno() < 0:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(0))


class TLSStream(SocketStream):
    """A connected socket that speaks TLS."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._secured = sock
        self._buffer: memoryview | None = None

    async def handshake(self) -> None:
        """Perform the handshake. Raises what ``ssl`` raises."""
        while True:
            try:
                return self._secured.do_handshake()
            except ssl.SSLWantReadError:
                await anyio.wait_readable(self._secured)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(self._secured)

    def _receive(self) -> bytes:
        """All records that are there, up to the buffer's size: OpenSSL returns one of at most 16 KiB at a time."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_READ_SIZE))
        filled = 0
        while filled < _READ_SIZE:
            try:
                count = self._secured.recv_into(self._buffer[filled:])
            except OSError:  # WantRead and WantWrite are OSErrors too; a real one comes back at the next read
                if not filled:
                    raise
                break
            if not count:
                break
            filled += count
        return bytes(self._buffer[:filled])


class SocketBackend(httpcore.AsyncNetworkBackend):
    """Makes ``SocketStream``s. Several addresses are tried a quarter of a second apart; the first that answers wins.

    What is under way already comes from ``ahead``, which is not ours to close.
    """

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[typing.Any] | None = None,
    ) -> SocketStream:
        """Resolve ``host`` and connect, within ``timeout`` seconds."""
        try:
            with anyio.fail_after(timeout):
                begun = await self._ahead.take(host, port)
                if begun is not None:
                    return SocketStream(await _race(*begun))
                return SocketStream(await _race(await _resolve(host, port)))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} seconds") from error
        except (OSError, UnicodeError, OverflowError) as error:  # of a bad name, of a port beyond 65535
            if isinstance(error, OSError) and error.errno in LIMITS:
                raise  # no fault of the other side
            raise httpcore.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        """Part of httpcore's interface."""
        await anyio.sleep(seconds)


async def _resolve(host: str, port: int) -> list[Address]:
    """The addresses of a server, in the order to try them in."""
    try:
        return known_addresses(host, port)
    except (socket.gaierror, UnicodeError):  # a name, which takes the resolver, and that a thread
        return alternating(await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM))


async def _race(addresses: list[Address], first: socket.socket | None = None) -> socket.socket:
    """The socket that is the first to be connected; ``first`` is under way to the first address already."""
    winners: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(address: Address, sock: socket.socket | None, failed: anyio.Event) -> None:
        try:
            winners.append(await _connect(address, sock))
        except OSError as error:
            failures.append(error)
            failed.set()
        else:
            group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                failed = anyio.Event()
                group.start_soon(attempt, address, first if address is addresses[0] else None, failed)
                with anyio.move_on_after(_HEAD_START):
                    await failed.wait()
    except BaseException:
        for sock in winners:
            sock.close()
        if first is not None:
            first.close()  # by us, where its attempt has not even begun
        raise
    for loser in winners[1:]:  # two may have connected in the same turn of the loop
        loser.close()
    if winners:
        return winners[0]
    raise failures[0] if failures else OSError("its name has no address")


async def _connect(address: Address, begun: socket.socket | None) -> socket.socket:
    sock = begun or begin(*address)
    try:
        await anyio.wait_writable(sock)
        _raise_failure(sock, f"connection to {address[1][0]}")
    except BaseException:
        sock.close()
        raise
    return sock


def _raise_failure(sock: socket.socket, what: str) -> None:
    """Raise what a socket has met with since it was last asked."""
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, f"{what} failed: {os.strerror(error).lower()}")
