"""Which proxy a server is asked for through: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as docker and podman read them, which
is as Go's net/http does. Pure.

This machine is never asked for through one: a proxy sees names of its own network.

Invariant: a proxy's password appears neither in a ``repr`` nor in a message.
"""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from crungo.errors import ConfigurationError
from crungo.records import Record, field
from crungo.registry.credentials import Credential
from crungo.registry.hosts import is_loopback
from crungo.registry.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from crungo.registry.urls import Url

    Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

__all__ = ["Proxy", "proxy_of"]

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


class Proxy(Record):
    """``scheme`` is how it is spoken to: ``http``, ``https`` or ``socks5``. User and password may be empty."""

    scheme: str
    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def netloc(self) -> str:
        """Its ``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authorization(self) -> str | None:
        """What tells an http proxy who we are; None where nobody said."""
        if not self.username and not self.password:
            return None
        return Credential(username=self.username, password=self.password).basic()


def proxy_of(url: Url, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy through which the server of ``url`` is to be asked; None where it is asked itself.

    Raises:
        ConfigurationError: the environment names a malformed one, or one of an unknown kind.
    """
    upper = f"{url.scheme.upper()}_PROXY"
    if upper == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
        return None  # of a CGI program, it is what a client sent as a header "Proxy"
    variable = next((name for name in (upper, upper.lower()) if environ.get(name)), None)
    if variable is None or is_loopback(url.netloc):
        return None
    exceptions = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    if any(_excepts(entry.strip().lower(), url) for entry in exceptions.split(",")):
        return None
    return _parse(environ[variable], variable)


def _parse(text: str, variable: str) -> Proxy:
    if "://" not in text:
        text = f"http://{text}"
    try:
        url, parts = parse_url(text), urlsplit(text)
    except ValueError:
        raise ConfigurationError(f"{variable}: malformed address of a proxy") from None
    if url.scheme not in _PORTS:
        raise ConfigurationError(f"{variable}: proxies are of http, https or socks5, not of {url.scheme!r}")
    port = url.port or _PORTS[url.scheme]
    if not url.host or port > 65535:
        raise ConfigurationError(f"{variable}: malformed address of a proxy")
    return Proxy(
        scheme="socks5" if url.scheme == "socks5h" else url.scheme,  # names are always its to look up
        host=url.host,
        port=port,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _excepts(entry: str, url: Url) -> bool:
    """Whether an entry of NO_PROXY, in lower case, is about the server of ``url``.

    ``*``; ``10.0.0.0/8``; or, each with or without ``:port``, ``10.1.2.3``, ``[fd00::1]``, ``example.com`` (and all
    below it), ``.example.com`` or ``*.example.com`` (what is below it). Anything else is about nobody.
    """
    if entry == "*":
        return True
    address = _address(url.host)
    if "/" in entry:
        return address is not None and _is_within(address, entry)
    host, colon, port = entry.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = entry, ""  # a name, or an address of IPv6, alone
    if port and port != str(url.port):
        return False
    host = host.strip("[]")
    if address is not None and address == _address(host):
        return True
    below = host.removeprefix("*") if host.startswith("*.") else host
    if below.startswith("."):
        return url.host.endswith(below)
    return bool(host) and (url.host == host or url.host.endswith(f".{host}"))


def _is_within(address: Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
