"""The contents of a container's /etc/hosts, /etc/hostname and /etc/resolv.conf. Pure.

Invariant: every text ends with a newline; names and addresses were checked when they were parsed and hold neither.
"""

from __future__ import annotations

from crungo.errors import UsageError
from crungo.parsing.network import HOST_GATEWAY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import ContainerConfig
    from crungo.runtime.host import HostFacts

__all__ = ["etc_files"]

_LOCAL = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def etc_files(config: ContainerConfig, *, hostname: str, host: HostFacts) -> dict[str, str]:
    """The text of each file by its name below /etc: ``hosts``, ``hostname``, ``resolv.conf``.

    Raises:
        UsageError: ``host-gateway`` without a network to reach the host by.
    """
    return {
        "hosts": _hosts(config, hostname, host),
        "hostname": f"{hostname}\n",
        "resolv.conf": _resolv_conf(config, host),
    }


def _hosts(config: ContainerConfig, hostname: str, host: HostFacts) -> str:
    if config.network == "host":
        base = _ended(host.hosts())
    else:
        own = dict.fromkeys([hostname, hostname.partition(".")[0], config.name or hostname])
        base = f"{_LOCAL}127.0.0.1\t{' '.join(own)}\n"  # there is only the loopback interface to be found under
    extra = []
    for name, address in config.add_host:
        if address == HOST_GATEWAY:
            if config.network != "host":
                raise UsageError(f"--add-host {name}:{HOST_GATEWAY}: there is no way to the host with --network none")
            address = "127.0.0.1"  # noqa: PLW2901  # on the host's own network the host is here
        extra.append(f"{address}\t{name}\n")
    # The C library takes the first line that names a host, so that what the user says comes first.
    return "".join(extra) + base


def _resolv_conf(config: ContainerConfig, host: HostFacts) -> str:
    servers = "".join(f"nameserver {address}\n" for address in config.dns)
    if config.network != "host":
        return servers or "# There is no network, and no name server.\n"
    text = _ended(host.resolv_conf())
    if not servers:
        return text
    kept = [line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("nameserver")]
    return "".join(kept) + servers


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
