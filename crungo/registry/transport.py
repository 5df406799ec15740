"""Requests and answers of HTTP/1.1 over one pool of connections, with our own sockets.

Blobs are streams of httpx (``streams``). What is asked for before them, which is all that most pulls ask for, httpcore
sends, whose pool lies below both: httpx takes 18 ms to import, and 0.1 ms of each request. Where there is a proxy, the
pool is one that asks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio
import anyio.to_thread
import httpcore

from crungo.errors import ConfigurationError
from crungo.records import Record
from crungo.registry.headers import Headers
from crungo.registry.sockets import SocketBackend

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping

    from crungo.registry.ahead import Ahead
    from crungo.registry.proxies import Proxy
    from crungo.registry.streams import Streams
    from crungo.registry.urls import Url

__all__ = [
    "FAILURES",
    "IDLE_SECONDS",
    "MOST_CONNECTIONS",
    "MOST_IDLE",
    "Response",
    "Transport",
    "import_streams",
]

FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""What a transport raises where there is no answer, or an answer is cut short."""

# Enough for 16 blobs at once from two hosts each; more connections to one registry only share its rate limit.
MOST_CONNECTIONS = 64
MOST_IDLE = 32
IDLE_SECONDS = 30.0


class Response(Record):
    """An answer whose body has not been read: ``body`` can be iterated once, ``aclose`` releases the connection.

    ``connection`` is what lies below; closing that ends whatever waits for the body.
    """

    status: int
    headers: Headers
    body: AsyncIterable[bytes]
    connection: httpcore.AsyncNetworkStream
    aclose: Callable[[], Awaitable[None]]


class Transport:
    """Owns connections to any number of hosts; used on one event loop.

    Without ``context``, only plain http is to be spoken. ``connect``, ``head`` and ``stall`` are seconds: until there
    is a connection, then the whole head of an answer (interim ones may come for ever, and a line byte by byte), then
    its next byte. ``ahead``: where connections may be under way already, its owner's to close. ``proxy`` is asked for
    everything, where there is one; ``proxy_context`` is for speaking TLS with it.

    Raises:
        ConfigurationError: the proxy is of a kind for which a package is missing.
    """

    kind: ClassVar[type[Streams] | None] = None
    """What sends streams, once it is imported."""

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None,
        connect: float,
        head: float,
        stall: float,
        ahead: Ahead,
        proxy: Proxy | None = None,
        proxy_context: ssl.SSLContext | None = None,
    ) -> None:
        self.proxy = proxy
        # Waiting for one's turn is no fault, and what is read first has a limit for all of it.
        self._timeout: dict[str, float | None] = {"connect": connect, "read": None, "write": stall, "pool": None}
        self._head = head
        self._stall = stall
        self._pool = _pool(context, ahead, proxy, proxy_context)
        self._streams: Streams | None = None

    async def send(
        self, method: str, url: Url, headers: Mapping[str, str], content: bytes, *, streamed: bool
    ) -> Response:
        """Send a request, ``streamed`` ones by httpx, and return when the head of the answer is there.

        Raises ``FAILURES``.
        """
        fields = [(b"Host", url.netloc.encode("ascii"))]
        fields += [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        if content:
            fields.append((b"Content-Length", b"%d" % len(content)))
        timeout = dict(self._timeout)
        with anyio.CancelScope() as scope:
            extensions = {"timeout": timeout, "trace": self._limiting(scope)}
            if streamed:
                response = await (await self._opened()).send(method, url, fields, content, extensions)
            else:
                response = await self._send(method, url, fields, content, extensions)
            timeout["read"] = self._stall  # httpcore looks when the body is read
            return response
        raise httpcore.ReadTimeout(f"no answer within {self._head:g} seconds")

    def _limiting(self, scope: anyio.CancelScope) -> Callable[[str, object], Awaitable[None]]:
        """What httpcore tells of its steps: the scope's time runs from when the request has its connection."""

        async def trace(step: str, _: object) -> None:
            if step == "http11.send_request_headers.started":
                scope.deadline = anyio.current_time() + self._head

        return trace

    async def _send(
        self, method: str, url: Url, fields: list[tuple[bytes, bytes]], content: bytes, extensions: dict[str, Any]
    ) -> Response:
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=method.encode("ascii"),
                url=httpcore.URL(
                    scheme=url.scheme.encode("ascii"),
                    host=url.host.encode("ascii"),
                    port=url.special_port,  # a proxy is told all of it
                    target=url.target.encode("ascii"),
                ),
                headers=fields,
                content=content,
                extensions=extensions,
            )
        )
        found = cast("dict[str, Any]", response.extensions)
        return Response(
            status=response.status,
            headers=Headers(response.headers),
            body=cast("AsyncIterable[bytes]", response.stream),
            connection=found["network_stream"],
            aclose=response.aclose,
        )

    def idle(self, url: Url) -> int:
        """How many connections to the server of ``url`` wait for a request."""
        origin = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=b"/").origin
        return sum(each.is_idle() and each.can_handle_request(origin) for each in self._pool.connections)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._streams is not None:
            await self._streams.aclose()
        await self._pool.aclose()

    async def _opened(self) -> Streams:
        if self._streams is None:
            kind = Transport.kind
            if kind is None:
                kind = await anyio.to_thread.run_sync(import_streams)
            self._streams = self._streams or kind(self._pool)
        return self._streams


def _pool(
    context: ssl.SSLContext | None, ahead: Ahead, proxy: Proxy | None, proxy_context: ssl.SSLContext | None
) -> httpcore.AsyncConnectionPool:
    options: dict[str, Any] = {
        "ssl_context": context,
        "max_connections": MOST_CONNECTIONS,
        "max_keepalive_connections": MOST_IDLE,
        "keepalive_expiry": IDLE_SECONDS,
    }
    if proxy is None:
        return httpcore.AsyncConnectionPool(network_backend=SocketBackend(ahead), **options)
    options["proxy_url"] = httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target=b"/")
    if proxy.scheme == "socks5":
        user = (proxy.username, proxy.password) if proxy.username else None
        try:
            return httpcore.AsyncSOCKSProxy(proxy_auth=user, **options)
        except RuntimeError:
            raise ConfigurationError(f"proxy {proxy.netloc}: socks5 takes the Python package socksio") from None
    if proxy.authorization is not None:
        options["proxy_headers"] = {"Proxy-Authorization": proxy.authorization}
    if proxy.scheme == "https":  # TLS within TLS is beyond our own sockets
        return httpcore.AsyncHTTPProxy(proxy_ssl_context=proxy_context, **options)
    return httpcore.AsyncHTTPProxy(network_backend=SocketBackend(ahead), **options)


def import_streams() -> type[Streams]:
    """Import httpx, which is best done before it is needed, in a worker thread."""
    from crungo.registry.streams import Streams

    Transport.kind = Streams
    return Streams
