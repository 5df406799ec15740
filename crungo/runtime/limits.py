"""Resources, rlimits and kernel parameters of a container, checked against what the host can give. Pure.

Invariant: what the user asked for is either granted in full or refused; what was not asked for is never set, so that a
container inherits the caller's limits and starts on any host.
"""

from __future__ import annotations

from crungo.errors import HostError, UsageError
from crungo.parsing.values import MINIMUM_MEMORY, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from crungo.config import ContainerConfig, Ulimit
    from crungo.runtime.host import DeviceNode, HostFacts

__all__ = ["changed_resources", "resources", "rlimits", "sysctls"]

_CPU_PERIOD = 100_000  # microseconds; docker's
_UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY
_LEAST = {"nofile": 16, "cpu": 1}
"""The container's process has work to do after it has set its limits (``native/crun.c``): it opens its root, a
terminal. Without any time, in seconds, it might be killed meanwhile, or not, as the kernel's clock ticks."""

# Kernel parameters that belong to a namespace of the container; all others are the host's.
_IPC_SYSCTLS = frozenset(
    words(
        "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni "
        "kernel.shm_rmid_forced"
    )
)
_PRIVATE_NETWORK = {
    # A container's own ports and pings cannot disturb the host: no capability is needed for them.
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


def resources(config: ContainerConfig, host: HostFacts, devices: Sequence[DeviceNode]) -> dict[str, Any]:
    """The ``linux.resources`` object; ``devices`` are the host's nodes that the container gets, beside the usual ones.

    Raises:
        UsageError: memory and swap contradict each other.
    """
    result: dict[str, Any] = {"devices": _device_rules(config, devices)}
    if memory := _memory(config, host):
        result["memory"] = memory
    if config.cpus:
        result["cpu"] = {"quota": max(1000, round(config.cpus * _CPU_PERIOD)), "period": _CPU_PERIOD}
    if config.pids_limit is not None and config.pids_limit > 0:
        result["pids"] = {"limit": config.pids_limit}
    return result


def changed_resources(limits: Mapping[str, float], *, swap_limit: bool) -> dict[str, Any]:
    """The ``linux.resources`` object that changes limits of a running container; what is not in it stays.

    ``limits`` are ``memory``, ``memory_swap`` (bytes), ``cpus`` and ``pids_limit``, -1 for none. ``swap_limit`` says
    whether the host can limit memory plus swap.

    Raises:
        UsageError: memory and swap contradict each other.
    """
    result: dict[str, Any] = {}
    memory, swap = limits.get("memory"), limits.get("memory_swap")
    if memory is None and swap is not None:
        raise UsageError("memory_swap: it needs memory, of which it is the sum with swap")
    if memory is not None:
        if swap is not None and swap != -1 and (memory == -1 or swap < memory):
            raise UsageError(f"memory_swap {swap}: below memory {memory}; it is memory plus swap")
        result["memory"] = {"limit": memory}
        if swap_limit:
            result["memory"]["swap"] = memory if swap is None else swap
    if (cpus := limits.get("cpus")) is not None:
        quota = -1 if cpus == -1 else max(1000, round(cpus * _CPU_PERIOD))
        result["cpu"] = {"quota": quota, "period": _CPU_PERIOD}
    if (pids := limits.get("pids_limit")) is not None:
        result["pids"] = {"limit": pids}
    return result


def _memory(config: ContainerConfig, host: HostFacts) -> dict[str, int]:
    limit, swap = config.memory, config.memory_swap
    if limit is None:
        if swap is not None:
            raise UsageError("--memory-swap: it needs --memory, of which it is the sum with swap")
        return {}
    if limit < MINIMUM_MEMORY:
        raise UsageError(f"--memory {limit}: too small; the least is 6m")
    if swap is not None and swap != -1 and swap < limit:
        raise UsageError(f"--memory-swap {swap}: below --memory {limit}; it is memory plus swap")
    if not host.swap_limit:  # a v1 kernel without swap accounting has no file to write it to
        return {"limit": limit}
    return {"limit": limit, "swap": limit if swap is None else swap}


def _device_rules(config: ContainerConfig, devices: Sequence[DeviceNode]) -> list[dict[str, Any]]:
    if config.privileged:
        return [{"allow": True, "access": "rwm"}]
    # libcrun allows every container null, zero, full, random, urandom, tty, console, ptmx, tun and the terminals of
    # devpts, and mknod of any node (a node gives no access by itself).
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    permissions = {device.source: device.permissions for device in config.devices}
    for node in devices:
        # A directory of devices was given by one flag: the longest source that the node lies under is its own.
        source = max((path for path in permissions if node.path == path or node.path.startswith(f"{path}/")), key=len)
        rules.append(
            {"allow": True, "type": node.type, "major": node.major, "minor": node.minor, "access": permissions[source]}
        )
    return rules


def rlimits(config: ContainerConfig, host: HostFacts) -> list[dict[str, Any]]:
    """The ``process.rlimits`` list, of what was asked for.

    Raises:
        UsageError: a soft limit is above its hard limit, or too low for a container to start.
        HostError: a limit is above the caller's hard limit, and the caller may not raise it.
    """
    chosen = {ulimit.name: ulimit for ulimit in config.ulimits}
    for ulimit in chosen.values():
        _check_rlimit(ulimit, host)
    return [
        {"type": f"RLIMIT_{name.upper()}", "soft": _unsigned(ulimit.soft), "hard": _unsigned(ulimit.hard)}
        for name, ulimit in chosen.items()
    ]


def _check_rlimit(ulimit: Ulimit, host: HostFacts) -> None:
    wanted = _unsigned(ulimit.hard)
    what = f"--ulimit {ulimit.name}={ulimit.soft}:{ulimit.hard}"
    if _unsigned(ulimit.soft) > wanted:
        raise UsageError(f"{what}: the soft limit is above the hard limit")
    if _unsigned(ulimit.soft) < (least := _LEAST.get(ulimit.name, 0)):
        raise UsageError(f"{what}: too low to start a container with; the least is {least}")
    if ulimit.name == "nofile" and wanted > host.nr_open:
        raise HostError(f"{what}: the kernel's ceiling is {host.nr_open} (fs.nr_open)")
    if "SYS_RESOURCE" in host.capabilities or ulimit.name not in host.rlimits:
        return
    allowed = _unsigned(host.rlimits[ulimit.name][1])
    if wanted > allowed:
        raise HostError(
            f"{what}: the hard limit of this process is {allowed}, which it may not raise (CAP_SYS_RESOURCE)"
        )


def _unsigned(limit: int) -> int:
    return _UNLIMITED if limit == -1 else limit


def sysctls(config: ContainerConfig) -> dict[str, str]:
    """The ``linux.sysctl`` object: what is the default of a private network, then the user's.

    Raises:
        UsageError: a parameter is the host's, not the container's.
    """
    result = dict(_PRIVATE_NETWORK) if config.network != "host" else {}
    for name, value in config.sysctls.items():
        if name.startswith("net."):
            if config.network == "host":
                raise UsageError(f"--sysctl {name}: it would change the host's network, which --network host shares")
        elif name not in _IPC_SYSCTLS and not name.startswith("fs.mqueue."):
            raise UsageError(f"--sysctl {name}: it belongs to no namespace of the container; it would change the host")
        result[name] = value
    return result
