"""URLs, in the parts that a request needs (RFC 3986). Pure.

Invariant: what is in a ``Url`` can stand in the head of a request as it is: visible ASCII, the host in lower case.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from crungo.records import Record

__all__ = ["Url", "join_url", "parse_url"]

_PORTS = {"http": 80, "https": 443}
_HOST = r"[a-z0-9._~-]*|[0-9a-f:.]*:[0-9a-f:.]*"  # a name or an address; one of IPv6 without its brackets
_LONGEST_HOST = 253  # characters of a name in the DNS
_INVISIBLE = re.compile("[^!-~]")


class Url(Record):
    """``port`` is the scheme's own where none was given, 0 where it has none; ``target`` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def special_port(self) -> int | None:
        """The port where it is not the scheme's own."""
        return None if self.port == _PORTS.get(self.scheme) else self.port

    @property
    def netloc(self) -> str:
        """``host[:port]``, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.special_port is None else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Who is spoken to: scheme, host and port (RFC 6454)."""
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def parse_url(text: str) -> Url:
    """The parts of an absolute URL. User, password and fragment are dropped; what is not visible ASCII is quoted.

    Raises:
        ValueError: it is malformed, or a name in it is not ASCII.
    """
    parts = urlsplit(text)
    host = parts.hostname or ""
    digits = parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    if len(host) > _LONGEST_HOST or not re.fullmatch(_HOST, host) or not re.fullmatch("[0-9]{0,10}", digits):
        raise ValueError("malformed host or port")
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return Url(
        scheme=parts.scheme,
        host=host,
        port=int(digits) if digits else _PORTS.get(parts.scheme, 0),
        # Headers, where redirects come from, are bytes that were read as Latin-1.
        target=_INVISIBLE.sub(lambda found: f"%{found.group().encode('latin-1')[0]:02X}", target),
    )


def join_url(base: Url, reference: str) -> Url:
    """Where a reference leads that was found at ``base``; errors as for ``parse_url``."""
    return parse_url(urljoin(str(base), reference))
