"""httpx's transport over httpcore's pool with our own sockets, for connections that no proxy stands in.

Invariant: whatever goes wrong below is raised as the httpx exception of the same name.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

import httpcore
import httpx

from crungo.registry.sockets import SocketBackend

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Iterator

__all__ = ["SocketTransport"]


class SocketTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 with connections that are kept alive; without ``context``, https is impossible."""

    def __init__(self, *, context: ssl.SSLContext | None, limits: httpx.Limits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=SocketBackend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` and return when the head of the response is there."""
        target = request.url
        with _translated():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        with _translated():
            await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # The stream itself: each generator more between it and the reader costs a step per chunk.
        with _translated():
            async for chunk in cast("AsyncIterable[bytes]", self._response.stream):
                yield chunk

    async def aclose(self) -> None:
        with _translated():
            await self._response.aclose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
    ) as e:
        kind: type[httpx.HTTPError] = getattr(httpx, type(e).__name__, httpx.TransportError)
        raise kind(str(e)) from e
