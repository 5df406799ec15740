"""Requests through the proxies that the environment names: httpx knows HTTP(S)_PROXY, ALL_PROXY and NO_PROXY, tunnels,
and credentials for proxies.

Invariant: what httpx raises is raised as the httpcore exception of the same name, as by a transport without a proxy.
"""

from __future__ import annotations

import contextlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, cast

import httpcore
import httpx

from crungo.registry.headers import Headers
from crungo.registry.transport import IDLE_SECONDS, MOST_CONNECTIONS, MOST_IDLE, Response

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping

    from crungo.registry.urls import Url

__all__ = ["ProxiedTransport"]


class ProxiedTransport:
    """As ``DirectTransport``; ``context`` is also for TLS inside of a tunnel."""

    def __init__(self, *, context: ssl.SSLContext, connect: float, stall: float) -> None:
        self._client = httpx.AsyncClient(
            verify=context,
            limits=httpx.Limits(
                max_connections=MOST_CONNECTIONS,
                max_keepalive_connections=MOST_IDLE,
                keepalive_expiry=IDLE_SECONDS,
            ),
            trust_env=True,
            timeout=httpx.Timeout(stall, connect=connect, pool=None),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # nothing a registry says is kept
            follow_redirects=False,
            event_hooks={"response": [_take_location]},
        )

    async def send(self, method: str, url: Url, headers: Mapping[str, str], content: bytes) -> Response:
        """As of :class:`Transport`."""
        with _translated():
            request = self._client.build_request(method, str(url), headers=headers, content=content or None)
            response = await self._client.send(request, stream=True)
        return Response(
            status=response.status_code,
            headers=Headers([*response.headers.raw, *response.extensions["location"]]),
            body=_body(response),
            connection=response.extensions["network_stream"],
            aclose=response.aclose,
        )

    async def aclose(self) -> None:
        """As of :class:`Transport`."""
        with _translated():
            await self._client.aclose()


async def _take_location(response: httpx.Response) -> None:
    """Put ``Location`` where httpx does not see it: it reads it even when told not to follow, and fails on bad ones."""
    response.extensions["location"] = [item for item in response.headers.raw if item[0].lower() == b"location"]
    response.headers.pop("location", None)


async def _body(response: httpx.Response) -> AsyncIterator[bytes]:
    with _translated():
        async for chunk in cast("AsyncIterable[bytes]", response.stream):
            yield chunk


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        kind: type[Exception] = getattr(httpcore, type(error).__name__, httpcore.ProtocolError)
        raise kind(str(error)) from error
