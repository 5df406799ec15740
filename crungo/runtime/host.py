"""What pure code needs to know of the host, and the checks of a configuration against it.

Invariant: this is the only module through which the making of a specification touches the system.
"""

from __future__ import annotations

import os
import re
import stat

from crungo.errors import HostError, UsageError
from crungo.parsing.host import CAPABILITIES
from crungo.parsing.values import quote
from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal

    from crungo.config import ContainerConfig

__all__ = ["DeviceNode", "HostFacts", "check_host"]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
# Terminals and what the container has of its own; a privileged one gets every other device of the host.
_OWN_IN_DEV = frozenset(("pts", "shm", "mqueue", "fd", "console", "ptmx", "tty", "stdin", "stdout", "stderr"))
_TYPES: dict[int, Literal["c", "b"]] = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
_FILE_LIMIT = 1 << 20  # bytes of a file of /etc that are read


class DeviceNode(Record):
    """A device node as it is on the host: its path, ``c`` or ``b``, numbers, permission bits and owner."""

    path: str
    type: Literal["c", "b"]
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class HostFacts(Record):
    """The host as the makers of specifications see it; what costs something to find out is a callable.

    ``capabilities`` is the caller's bounding set, without ``CAP_``; ``rlimits`` maps lower-case names to soft and
    hard limits, -1 for none; ``nr_open`` is the kernel's ceiling of ``nofile``; ``architecture`` is Go's word for it;
    ``swap_limit`` says whether memory plus swap can be limited.
    """

    cgroup_version: Literal[1, 2]
    capabilities: frozenset[str]
    rlimits: Mapping[str, tuple[int, int]]
    nr_open: int
    hostname: str
    architecture: str
    kernel: tuple[int, int]
    term: str | None
    swap_limit: bool
    init_path: str
    hosts: Callable[[], str]
    resolv_conf: Callable[[], str]
    devices_at: Callable[[str], tuple[DeviceNode, ...]]
    all_devices: Callable[[], tuple[DeviceNode, ...]]

    @classmethod
    def read(cls) -> HostFacts:
        """The facts about this host and this process; a handful of small reads."""
        uname = os.uname()
        unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        return cls(
            cgroup_version=2 if unified else 1,
            capabilities=_bounding(),
            rlimits=_rlimits(),
            nr_open=int(_text("/proc/sys/fs/nr_open") or 1 << 20),
            hostname=uname.nodename,
            architecture=_ARCHITECTURES.get(uname.machine, uname.machine),
            kernel=_version(uname.release),
            term=os.environ.get("TERM"),
            swap_limit=unified or os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
            init_path=os.path.join(os.path.dirname(os.path.abspath(__file__)), "crungo-init"),
            hosts=lambda: _text("/etc/hosts"),
            resolv_conf=_resolv_conf,
            devices_at=_devices_at,
            all_devices=_all_devices,
        )


def check_host(config: ContainerConfig, host: HostFacts) -> None:
    """Refuse, before anything is pulled or made, what this host cannot give.

    Raises:
        UsageError: the source of a bind, a device or the rootfs does not exist.
        HostError: the init program was not built.
    """
    for mount in config.mounts:
        if mount.type == "bind" and not os.path.exists(mount.source):
            raise UsageError(f"bind mount source {quote(mount.source)}: no such file or directory")
    for device in config.devices:
        host.devices_at(device.source)
    if config.rootfs is not None and not os.path.isdir(config.rootfs):
        raise UsageError(f"rootfs {quote(config.rootfs)}: not a directory")
    if config.init and not os.access(host.init_path, os.X_OK):
        raise HostError(f"--init: {host.init_path} is missing", hint="build the package again: make build")


def _text(path: str) -> str:
    """The start of a text file, empty where it cannot be read; bytes that are not UTF-8 are replaced."""
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_LIMIT).decode("utf-8", "replace").replace("\0", "")
    except OSError:
        return ""


def _resolv_conf() -> str:
    return _text("/etc/resolv.conf")


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release, re.ASCII)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _bounding() -> frozenset[str]:
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("CapBnd:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)
    return frozenset()


def _rlimits() -> dict[str, tuple[int, int]]:
    import resource  # a C module of its own file; only this function needs it

    return {
        name.removeprefix("RLIMIT_").lower(): resource.getrlimit(getattr(resource, name))
        for name in dir(resource)
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
    }


def _node(path: str) -> DeviceNode | None:
    status = os.stat(path)
    letter = _TYPES.get(stat.S_IFMT(status.st_mode))
    if letter is None:
        return None
    return DeviceNode(
        path=path,
        type=letter,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
    )


def _below(directory: str) -> tuple[DeviceNode, ...]:
    """The device nodes in a directory and below it, symbolic links not followed, in the order of their paths."""
    nodes = []
    for parent, folders, files in os.walk(directory):
        if parent == "/dev":
            folders[:] = [name for name in folders if name not in _OWN_IN_DEV]
            files = [name for name in files if name not in _OWN_IN_DEV]  # noqa: PLW2901
        for name in files:
            path = os.path.join(parent, name)
            try:
                if not os.path.islink(path) and (node := _node(path)) is not None:
                    nodes.append(node)
            except OSError:
                continue  # gone between the listing and the look: devices come and go
    return tuple(sorted(nodes, key=lambda node: node.path))


def _devices_at(path: str) -> tuple[DeviceNode, ...]:
    """The node at a path of the host, or those below it where it is a directory."""
    try:
        if os.path.isdir(path):
            nodes = _below(path)
        else:
            node = _node(path)
            nodes = () if node is None else (node,)
    except OSError as error:
        raise UsageError(f"device {quote(path)}: {error.strerror or error}") from None
    if not nodes:
        raise UsageError(f"device {quote(path)}: not a device node")
    return nodes


def _all_devices() -> tuple[DeviceNode, ...]:
    return _below("/dev")
