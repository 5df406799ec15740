"""Sending requests: one set of transports, certificates per host, redirects by hand, time limits.

Invariant: ``Authorization`` goes to the origin (scheme, host, port) it was made for and to no other, from the first
redirect elsewhere on; and https never becomes http unless the endpoint is insecure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

import anyio
import anyio.to_thread

from crungo.errors import RegistryError
from crungo.records import Record, field
from crungo.registry.ahead import Ahead, is_far
from crungo.registry.answer import Answer
from crungo.registry.failures import unreachable
from crungo.registry.headers import printable
from crungo.registry.hostfiles import Certificates, find_certificates
from crungo.registry.hosts import Hosts, filed_under
from crungo.registry.proxies import Proxy, proxy_of
from crungo.registry.tls import build_context
from crungo.registry.transport import FAILURES, Transport
from crungo.registry.urls import Url, join_url, parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crungo.registry.transport import Response

__all__ = ["Outgoing", "Timeouts", "Wire"]

_MOST_REDIRECTS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "crungo"
_NO_CERTIFICATES = Certificates()


class Timeouts(Record):
    """Time limits in seconds: for a connection, for the head of an answer, for the next byte after it, and for the
    whole of a small answer. A cache begins to answer when it has fetched what it was asked for."""

    connect: float = 15.0
    head: float = 60.0
    stall: float = 30.0
    whole: float = 120.0


class Outgoing(Record):
    """A request. ``what`` names the thing asked for in messages; ``insecure`` lets redirects go to plain http and takes
    unverified TLS on the host of ``url``; ``form`` makes it a POST, which follows no redirect; ``streamed``: what comes
    is large, a stream of httpx."""

    what: str
    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    insecure: bool = False
    streamed: bool = False


class _Trust(Record, kw_only=False):
    """What one transport is made for."""

    tls: bool
    insecure: bool = False
    certificates: Certificates = _NO_CERTIFICATES
    proxy: Proxy | None = None


class Wire:
    """Owns the connections of one registry client, those ``ahead`` too. Used on one event loop; ``aclose`` ends it."""

    def __init__(self, *, hosts: Hosts, certificate_folders: tuple[str, ...], timeouts: Timeouts, ahead: Ahead) -> None:
        self._hosts = hosts
        self._folders = certificate_folders
        self._timeouts = timeouts
        self._ahead = ahead
        self._transports: dict[_Trust, Transport] = {}
        self._trusted: dict[tuple[str, str, bool], _Trust] = {}  # by scheme, host and insecurity
        self._making = anyio.Lock(fast_acquire=True)
        self._answering: set[tuple[str, str, int]] = set()  # origins

    def has_answered(self, url: str) -> bool:
        """Whether the server of ``url`` has ever answered in the url's scheme."""
        return parse_url(url).origin in self._answering

    def connect_ahead(self, text: str, count: int) -> None:
        """Requests to a URL's server will be made, so many at once: begin to open what connections that takes.

        Not where that is a matter of microseconds, or of a proxy.
        """
        url = parse_url(text)
        missing = count - self._ahead.count(url.host, url.port)
        missing -= sum(transport.idle(url) for transport in self._transports.values())
        if missing > 0 and is_far(url):
            self._ahead.open(url.host, url.port, missing)

    async def aclose(self) -> None:
        """Close all connections."""
        self._ahead.close()
        transports, self._transports = list(self._transports.values()), {}
        with anyio.CancelScope(shield=True):
            for transport in transports:
                await transport.aclose()

    async def send(self, outgoing: Outgoing) -> Answer:
        """Send a request and follow redirects; the answer's body is unread, and the caller closes it.

        Raises:
            RegistryError: no answer, or a redirect that must not be followed.
            ConfigurationError: the environment names a malformed proxy, or a certificate is malformed.
        """
        origin = url = _parsed(outgoing.url, outgoing.what)
        authorization = outgoing.authorization
        for _ in range(_MOST_REDIRECTS + 1):
            # The exception for insecure hosts is made for the host that was named, not for wherever it points.
            insecure = outgoing.insecure and url.host == origin.host
            response = await self._once(outgoing, url, authorization, insecure=insecure)
            answer = Answer(
                response,
                outgoing.what,
                url,
                self._timeouts.whole,
                bodiless=outgoing.method == "HEAD",
                foreign=url.origin != origin.origin,
            )
            location = response.headers.get("location")
            if answer.status not in _REDIRECTS or location is None or outgoing.form is not None:
                return answer
            await answer.aclose()
            target = _redirected(url, location, outgoing)
            if target.origin != url.origin:
                authorization = None
            url = target
        raise RegistryError(f"{outgoing.what}: {url.netloc}: redirected more than {_MOST_REDIRECTS} times")

    async def _once(self, outgoing: Outgoing, url: Url, authorization: str | None, *, insecure: bool) -> Response:
        # Bytes must come as they are filed: their digest is that of what is sent, and a decoder is one more target.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", "Accept": "*/*", **outgoing.headers}
        content = b""
        if authorization:
            headers["Authorization"] = authorization
        if outgoing.form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = urlencode(outgoing.form).encode()
        transport = await self._transport(url, insecure=insecure)
        method = outgoing.method if outgoing.form is None else "POST"
        try:
            response = await transport.send(method, url, headers, content, streamed=outgoing.streamed)
        except FAILURES as error:
            proxy = transport.proxy
            failure = unreachable(outgoing.what, url.netloc, error, proxy=None if proxy is None else proxy.netloc)
            failure.answering = url.origin in self._answering
            if proxy is not None:
                failure.hint = failure.hint or "HTTP_PROXY, HTTPS_PROXY and NO_PROXY are in effect"
            raise failure from error
        if response.status != 400 or url.scheme == "https":  # 400 is what servers of TLS say to plain http
            self._answering.add(url.origin)
        return response

    async def _transport(self, url: Url, *, insecure: bool) -> Transport:
        host = url.netloc
        key = (url.scheme, host, insecure)
        async with self._making:
            trust = self._trusted.get(key)
            if trust is None:
                proxy = proxy_of(url)
                trust = _Trust(tls=False, proxy=proxy)
                if url.scheme == "https":
                    trust = await anyio.to_thread.run_sync(self._trust, url, insecure, proxy)
                self._trusted[key] = trust
            transport = self._transports.get(trust)
            if transport is None:
                transport = self._transports[trust] = await self._make(trust)
            return transport

    def _trust(self, url: Url, insecure: bool, proxy: Proxy | None) -> _Trust:
        certificates = find_certificates(filed_under(url.netloc), self._folders)
        if certificates == _NO_CERTIFICATES and url.special_port is None:
            certificates = find_certificates(f"{url.netloc}:{url.port}", self._folders)  # as it may have been written
        return _Trust(
            tls=True,
            insecure=insecure or self._hosts.is_insecure(url.netloc),
            certificates=certificates,
            proxy=proxy,
        )

    async def _make(self, trust: _Trust) -> Transport:
        context = proxy_context = None
        if trust.tls:
            context = await anyio.to_thread.run_sync(lambda: build_context(trust.certificates, insecure=trust.insecure))
        if trust.proxy is not None and trust.proxy.scheme == "https":
            proxy_context = await anyio.to_thread.run_sync(lambda: build_context(trust.certificates, insecure=False))
        return Transport(
            context=context,
            connect=self._timeouts.connect,
            head=self._timeouts.head,
            stall=self._timeouts.stall,
            ahead=self._ahead,
            proxy=trust.proxy,
            proxy_context=proxy_context,
        )


def _parsed(url: str, what: str) -> Url:
    try:
        return parse_url(url)
    except ValueError:
        raise RegistryError(f"{what}: malformed address {printable(url, limit=100)}") from None


def _redirected(url: Url, location: str, outgoing: Outgoing) -> Url:
    host = url.netloc
    try:
        target = join_url(url, location)
    except ValueError:
        raise RegistryError(f"{outgoing.what}: {host}: malformed redirect {printable(location, limit=100)}") from None
    if target.scheme not in ("http", "https") or not target.host or not 0 < target.port < 65536:
        raise RegistryError(f"{outgoing.what}: {host}: redirect to {printable(location, limit=100)} is not followed")
    if url.scheme == "https" and target.scheme == "http" and not outgoing.insecure:
        raise RegistryError(f"{outgoing.what}: {host}: redirect from https to http is not followed")
    return target
