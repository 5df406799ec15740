"""``--network``, ``--add-host``, ``--dns`` and ``--hostname``.

Invariant: addresses leave in their canonical form (RFC 5952 for IPv6) and without a scope.
"""

from __future__ import annotations

import re

from crungo.parsing.values import bad_value, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import Network

__all__ = ["HOST_GATEWAY", "parse_add_host", "parse_dns", "parse_hostname", "parse_network"]

HOST_GATEWAY = "host-gateway"
_HOSTNAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"  # 64: the kernel's __NEW_UTS_LEN
_HOSTS_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})"


def parse_network(text: str, *, flag: str = "--network") -> Network:
    """``none`` or ``host``."""
    if text == "none":
        return "none"
    if text == "host":
        return "host"
    if text in ("bridge", "default", "pasta", "slirp4netns") or text.startswith(("container:", "ns:")):
        raise bad_value(flag, text, "this kind of network is not supported; expected none or host")
    raise bad_value(flag, text, "unknown network; expected none or host")


def parse_hostname(text: str, *, flag: str = "--hostname") -> str:
    """A host name that sethostname(2) takes: at most 64 letters, digits, dots and hyphens."""
    if not re.fullmatch(_HOSTNAME, text) or ".." in text:
        why = "not a host name; expected at most 64 letters, digits, dots and hyphens, such as web-1"
        raise bad_value(flag, text, why)
    return text


def parse_add_host(text: str, *, flag: str = "--add-host") -> tuple[str, str]:
    """``name:address`` or ``name=address``; the address is IPv4, IPv6 (in brackets or not) or ``host-gateway``."""
    found = re.match(r"([^:=]*)[:=](.*)", text, re.DOTALL)
    if found is None:
        raise bad_value(flag, text, "no address; expected name:address")
    name, address = found[1], found[2]
    if not re.fullmatch(_HOSTS_NAME, name):
        raise bad_value(flag, text, f"malformed host name {quote(name)}; expected name:address")
    if address == HOST_GATEWAY:
        return name, address
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    return name, _address(address, flag=flag, text=text)


def parse_dns(text: str, *, flag: str = "--dns") -> str:
    """The address of a name server."""
    return _address(text, flag=flag, text=text)


def _address(address: str, *, flag: str, text: str) -> str:
    import ipaddress  # only needed by flags that few use

    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise bad_value(flag, text, f"{quote(address)} is not an IP address") from None
    if "%" in address:  # a scope names an interface of the host, which does not exist inside
        raise bad_value(flag, text, "the address has a scope, which means nothing inside a container")
    return str(parsed)
