"""Sending requests: one set of httpx clients, certificates per host, redirects by hand, time limits.

Invariant: ``Authorization`` goes to the origin (scheme, host, port) it was made for and to no other, from the first
redirect elsewhere on; and https never becomes http unless the endpoint is insecure.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import getproxies

import anyio
import anyio.to_thread
import httpx

from crungo.errors import RegistryError
from crungo.records import Record, field
from crungo.registry.answer import Answer
from crungo.registry.failures import unreachable
from crungo.registry.headers import printable
from crungo.registry.hostfiles import Certificates, find_certificates
from crungo.registry.hosts import Hosts, host_of, is_loopback
from crungo.registry.tls import build_context, build_plain_context
from crungo.registry.transport import SocketTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Outgoing", "Timeouts", "Wire"]

_MOST_REDIRECTS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Enough for 16 blobs at once from two hosts each; more connections to one registry only share its rate limit.
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=30.0)
_USER_AGENT = "crungo"
_NO_CERTIFICATES = Certificates()


class Timeouts(Record):
    """Time limits in seconds: for a connection, for the next byte, and for the whole of a small answer."""

    connect: float = 15.0
    stall: float = 30.0
    whole: float = 120.0


class Outgoing(Record):
    """A request. ``what`` names the thing asked for in messages; ``insecure`` lets redirects go to plain http and takes
    unverified TLS on the host of ``url``; ``form`` makes it a POST, which follows no redirect."""

    what: str
    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    insecure: bool = False


class _Trust(Record, kw_only=False):
    """What one httpx client is made for."""

    tls: bool
    insecure: bool = False
    certificates: Certificates = _NO_CERTIFICATES
    proxied: bool = False


class Wire:
    """Owns the connections of one registry client. Used on one event loop; ``aclose`` ends it."""

    def __init__(self, *, hosts: Hosts, certificate_folders: tuple[str, ...], timeouts: Timeouts) -> None:
        self._hosts = hosts
        self._folders = certificate_folders
        self._timeouts = timeouts
        self._clients: dict[_Trust, httpx.AsyncClient] = {}
        self._trusted: dict[tuple[str, str, bool], _Trust] = {}  # by scheme, host and insecurity
        self._making = anyio.Lock()
        self._answering: set[tuple[str, str, int]] = set()  # origins

    def has_answered(self, url: str) -> bool:
        """Whether the server of ``url`` has ever answered in the url's scheme."""
        return _origin(httpx.URL(url)) in self._answering

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients = list(self._clients.values()), {}
        with anyio.CancelScope(shield=True):
            for client in clients:
                await client.aclose()

    async def send(self, outgoing: Outgoing) -> Answer:
        """Send a request and follow redirects; the answer's body is unread, and the caller closes it.

        Raises:
            RegistryError: no answer, or a redirect that must not be followed.
        """
        origin = url = _parsed(outgoing.url, outgoing.what)
        authorization = outgoing.authorization
        for _ in range(_MOST_REDIRECTS + 1):
            response = await self._once(outgoing, url, authorization)
            answer = Answer(response, outgoing.what, self._timeouts.whole, foreign=_origin(url) != _origin(origin))
            location: str | None = response.extensions["location"]
            if answer.status not in _REDIRECTS or location is None or outgoing.form is not None:
                return answer
            await answer.aclose()
            target = _redirected(url, location, outgoing)
            if _origin(target) != _origin(url):
                authorization = None
            url = target
        raise RegistryError(f"{outgoing.what}: {url.netloc.decode()}: redirected more than {_MOST_REDIRECTS} times")

    async def _once(self, outgoing: Outgoing, url: httpx.URL, authorization: str | None) -> httpx.Response:
        # Bytes must come as they are filed: their digest is that of what is sent, and a decoder is one more target.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", "Accept": "*/*", **outgoing.headers}
        content = None
        if authorization:
            headers["Authorization"] = authorization
        if outgoing.form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = urlencode(outgoing.form).encode()
        # The exception for insecure hosts is made for the host that was named, not for wherever it points.
        same_host = url.host == httpx.URL(outgoing.url).host
        client = await self._client(url, insecure=outgoing.insecure and same_host)
        method = outgoing.method if outgoing.form is None else "POST"
        try:
            request = client.build_request(method, url, headers=headers, content=content)
            response = await client.send(request, stream=True, follow_redirects=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(outgoing.what, url.netloc.decode(), error) from error
        if response.status_code != 400 or url.scheme == "https":  # 400 is what servers of TLS say to plain http
            self._answering.add(_origin(url))
        return response

    async def _client(self, url: httpx.URL, *, insecure: bool) -> httpx.AsyncClient:
        host = url.netloc.decode()
        key = (url.scheme, host, insecure)
        async with self._making:
            trust = self._trusted.get(key)
            if trust is None:
                trust = self._trusted[key] = await anyio.to_thread.run_sync(self._trust, url.scheme, host, insecure)
            client = self._clients.get(trust)
            if client is None:
                client = self._clients[trust] = await self._make(trust)
            return client

    def _trust(self, scheme: str, host: str, insecure: bool) -> _Trust:
        # A proxy sees names of its own network: this machine is never asked for through one, as in Go's clients.
        proxied = not is_loopback(host) and bool(getproxies().keys() & {"http", "https", "all"})
        if scheme != "https":
            return _Trust(tls=False, proxied=proxied)
        filed_under = "docker.io" if host_of(host) == "registry-1.docker.io" else host
        return _Trust(
            tls=True,
            insecure=insecure or self._hosts.is_insecure(host),
            certificates=find_certificates(filed_under, self._folders),
            proxied=proxied,
        )

    async def _make(self, trust: _Trust) -> httpx.AsyncClient:
        context = build_plain_context()
        if trust.tls:
            context = await anyio.to_thread.run_sync(lambda: build_context(trust.certificates, insecure=trust.insecure))
        limits = self._timeouts
        common: dict[str, Any] = {
            "timeout": httpx.Timeout(limits.stall, connect=limits.connect, pool=None),  # waiting one's turn is no fault
            "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # nothing a registry says is kept
            "follow_redirects": False,
            "event_hooks": {"response": [_take_location]},
        }
        if trust.proxied:  # httpx's own transport knows HTTP(S)_PROXY and NO_PROXY, also those in the middle of TLS
            return httpx.AsyncClient(verify=context, limits=_LIMITS, trust_env=True, **common)
        transport = SocketTransport(context=context if trust.tls else None, limits=_LIMITS)
        return httpx.AsyncClient(transport=transport, trust_env=False, **common)


async def _take_location(response: httpx.Response) -> None:
    """Put ``Location`` where httpx does not see it: it reads it even when told not to follow, and fails on bad ones."""
    response.extensions["location"] = response.headers.pop("location", None)


def _parsed(url: str, what: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        raise RegistryError(f"{what}: malformed address {printable(url, limit=100)}") from None


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _redirected(url: httpx.URL, location: str, outgoing: Outgoing) -> httpx.URL:
    host = url.netloc.decode()
    try:
        target = url.join(location)
        if target.userinfo:
            target = target.copy_with(username=None, password=None)  # httpx would make credentials of them
    except (httpx.InvalidURL, ValueError):
        raise RegistryError(f"{outgoing.what}: {host}: malformed redirect {printable(location, limit=100)}") from None
    if target.scheme not in ("http", "https") or not target.host or not 0 < _origin(target)[2] < 65536:
        raise RegistryError(f"{outgoing.what}: {host}: redirect to {printable(location, limit=100)} is not followed")
    if url.scheme == "https" and target.scheme == "http" and not outgoing.insecure:
        raise RegistryError(f"{outgoing.what}: {host}: redirect from https to http is not followed")
    return target
