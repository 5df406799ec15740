"""Requests and answers of HTTP/1.1 over httpcore's pool with our own sockets, for connections that no proxy stands in.

httpx, which works over the same pool, is left to proxies (``proxied``): a sixth of a pull that changes nothing was
to import it, and a quarter of each request to go through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import httpcore

from crungo.records import Record
from crungo.registry.headers import Headers
from crungo.registry.sockets import SocketBackend

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping

    from crungo.registry.urls import Url

__all__ = ["FAILURES", "IDLE_SECONDS", "MOST_CONNECTIONS", "MOST_IDLE", "DirectTransport", "Response", "Transport"]

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


class Transport(Protocol):
    """Owns connections to any number of hosts; used on one event loop."""

    async def send(self, method: str, url: Url, headers: Mapping[str, str], content: bytes) -> Response:
        """Send a request and return when the head of the answer is there. Raises ``FAILURES``."""

    async def aclose(self) -> None:
        """Close all connections."""


class DirectTransport:
    """Without ``context``, only plain http is to be spoken. Times in seconds: ``stall`` until the next byte comes."""

    def __init__(self, *, context: ssl.SSLContext | None, connect: float, stall: float) -> None:
        # Waiting for one's turn is no fault.
        self._extensions = {"timeout": {"connect": connect, "read": stall, "write": stall, "pool": None}}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=MOST_CONNECTIONS,
            max_keepalive_connections=MOST_IDLE,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=SocketBackend(),
        )

    async def send(self, method: str, url: Url, headers: Mapping[str, str], content: bytes) -> Response:
        """As of :class:`Transport`."""
        fields = [(b"Host", url.netloc.encode("ascii"))]
        fields += [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        if content:
            fields.append((b"Content-Length", b"%d" % len(content)))
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
                extensions=self._extensions,
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

    async def aclose(self) -> None:
        """As of :class:`Transport`."""
        await self._pool.aclose()
