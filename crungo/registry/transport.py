"""Requests and answers of HTTP/1.1 over one pool of connections, with our own sockets.

Blobs are streams of httpx (``streams``). What is asked for before them, which is all that most pulls ask for, httpcore
sends, whose pool lies below both: httpx takes 18 ms to import, and 0.1 ms of each request. Where the environment names
a proxy, everything goes through httpx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio.to_thread
import httpcore

from crungo.records import Record
from crungo.registry.headers import Headers
from crungo.registry.sockets import SocketBackend

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping

    from crungo.registry.ahead import Ahead
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

    Without ``context``, only plain http is to be spoken. ``connect`` and ``stall`` are seconds, the latter until the
    next byte comes. ``proxied``: through the proxies that the environment names. ``ahead``: where connections may be
    under way already, its owner's to close.
    """

    kind: ClassVar[type[Streams] | None] = None
    """What sends streams, once it is imported."""

    def __init__(
        self, *, context: ssl.SSLContext | None, connect: float, stall: float, proxied: bool, ahead: Ahead
    ) -> None:
        self._context = context
        # Waiting for one's turn is no fault.
        self._timeout = {"connect": connect, "read": stall, "write": stall, "pool": None}
        self._proxied = proxied
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=MOST_CONNECTIONS,
            max_keepalive_connections=MOST_IDLE,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=SocketBackend(ahead),
        )
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
        if streamed or self._proxied:
            return await (await self._opened()).send(method, url, fields, content)
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=method.encode("ascii"),
                url=httpcore.URL(
                    scheme=url.scheme.encode("ascii"),
                    host=url.host.encode("ascii"),
                    port=url.port,
                    target=url.target.encode("ascii"),
                ),
                headers=fields,
                content=content,
                extensions={"timeout": self._timeout},
            )
        )
        extensions: dict[str, Any] = cast("dict[str, Any]", response.extensions)
        return Response(
            status=response.status,
            headers=Headers(response.headers),
            body=cast("AsyncIterable[bytes]", response.stream),
            connection=extensions["network_stream"],
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
            self._streams = self._streams or kind(
                pool=None if self._proxied else self._pool, context=self._context, timeout=self._timeout
            )
        return self._streams


def import_streams() -> type[Streams]:
    """Import httpx, which is best done before it is needed, in a worker thread."""
    from crungo.registry.streams import Streams

    Transport.kind = Streams
    return Streams
