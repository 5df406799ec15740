"""Requests through ``httpx.AsyncClient``: streams of blobs, over a pool of ours.

To import this is to import httpx, which takes 18 ms: see ``transport``.

Invariant: bytes come as the server sends them, nothing that an answer says is followed or kept, and what httpx raises
is raised as the httpcore exception of the same name.
"""

from __future__ import annotations

import contextlib
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, cast

import httpcore
import httpx

from crungo.registry.headers import Headers
from crungo.registry.transport import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence

    from crungo.registry.urls import Url

__all__ = ["Streams"]


class Streams:
    """A client of httpx over its caller's pool."""

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._client = httpx.AsyncClient(
            transport=_PoolTransport(pool),
            trust_env=False,  # proxies are the pool's
            cookies=_NoCookies(),
            follow_redirects=False,
            event_hooks={"response": [_take_location]},
        )

    async def send(
        self,
        method: str,
        url: Url,
        headers: Sequence[tuple[bytes, bytes]],
        content: bytes,
        extensions: dict[str, Any],
    ) -> Response:
        """As ``Transport.send``; ``headers`` are all that is sent, ``extensions`` those of httpcore's requests."""
        with _translated():
            request = httpx.Request(method, str(url), headers=headers, content=content or None, extensions=extensions)
            response = await self._client.send(request, stream=True)
        return Response(
            status=response.status_code,
            headers=Headers([*response.headers.raw, *response.extensions["location"]]),
            body=_body(response),
            connection=response.extensions["network_stream"],
            aclose=response.aclose,
        )

    async def aclose(self) -> None:
        """End the client. The connections are the caller's."""
        await self._client.aclose()


class _NoCookies(CookieJar):
    """Takes none. A policy that refuses all is asked about each, after the answer's head was made into an e-mail's."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Take no cookies out of an answer."""


class _PoolTransport(httpx.AsyncBaseTransport):
    """A pool of httpcore's below a client of httpx; its exceptions are left as they are."""

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_PoolStream(response),
            extensions=cast("dict[str, Any]", response.extensions),
        )


class _PoolStream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        # The stream itself: a generator more between it and the reader costs a step per chunk.
        return aiter(cast("AsyncIterable[bytes]", self._response.stream))

    async def aclose(self) -> None:
        await self._response.aclose()


async def _take_location(response: httpx.Response) -> None:
    """Put ``Location`` where httpx does not see it: it reads it even when told not to follow, and fails on bad ones."""
    response.extensions["location"] = [item for item in response.headers.raw if item[0].lower() == b"location"]
    response.headers.pop("location", None)


async def _body(response: httpx.Response) -> AsyncIterator[bytes]:
    with _translated():
        async for chunk in response.aiter_raw():
            yield chunk


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        kind: type[Exception] = getattr(httpcore, type(error).__name__, httpcore.ProtocolError)
        raise kind(str(error)) from error
