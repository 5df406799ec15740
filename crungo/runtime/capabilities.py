"""Which capabilities a container gets. Pure.

Invariant: the result never exceeds the bounding set of the caller, since libcrun fails on what it cannot grant.
"""

from __future__ import annotations

from crungo.errors import HostError
from crungo.parsing.host import CAPABILITIES
from crungo.parsing.values import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from crungo.config import ContainerConfig

__all__ = ["DEFAULT", "container_capabilities"]

# podman's eleven. docker's further three let a container make device nodes, send raw packets and write audit records.
DEFAULT = words("CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT")


def container_capabilities(config: ContainerConfig, bounding: AbstractSet[str]) -> tuple[str, ...]:
    """The names, without ``CAP_``, in the order of their numbers; ``bounding`` is what the caller may grant.

    docker's rules: ``--cap-add ALL`` wins and is reduced by ``--cap-drop``; ``--cap-drop ALL`` leaves just what is
    added; else drops come first and additions second. With host networking NET_RAW is among the defaults (ping).

    Raises:
        HostError: a capability was asked for by name that the caller does not have.
    """
    if config.privileged:
        return tuple(name for name in CAPABILITIES if name in bounding)
    added, dropped = set(config.cap_add), set(config.cap_drop)
    if "ALL" in added:
        chosen = set(bounding) - dropped
    elif "ALL" in dropped:
        chosen = added
    else:
        default = {*DEFAULT, "NET_RAW"} if config.network == "host" else set(DEFAULT)
        chosen = (default - dropped) | added
    for name in CAPABILITIES:
        if name in added and name not in bounding:
            raise HostError(f"--cap-add {name}: this process does not have the capability and cannot pass it on")
    return tuple(name for name in CAPABILITIES if name in chosen and name in bounding)
