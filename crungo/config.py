"""What a container is asked to be: one frozen value, and the values its fields are made of.

Nothing here touches the system; the text that users write (``256m``, ``./data:/data:ro``) is parsed in
``crungo.parsing``.
"""

from __future__ import annotations

from crungo.records import Record, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    Network = Literal["none", "host"]
    PullPolicy = Literal["missing", "always", "never", "newer"]

__all__ = ["ContainerConfig", "Device", "ExecConfig", "Mount", "Ulimit"]


class Mount(Record):
    """One mount inside the container.

    ``source`` is an absolute path of the host for ``bind`` and empty for ``tmpfs``. ``options`` are mount
    options of the OCI runtime specification (``ro``, ``bind``, ``size=64m``, …); a bind is an ``rbind`` unless they say
    otherwise.
    """

    type: Literal["bind", "tmpfs"]
    target: str
    source: str = ""
    options: tuple[str, ...] = ()


class Device(Record):
    """A device node of the host, at ``target`` inside; ``permissions`` is a subset of ``rwm``."""

    source: str
    target: str
    permissions: str = "rwm"


class Ulimit(Record):
    """A resource limit (setrlimit(2)); ``name`` without ``RLIMIT_``, in lower case; -1 is unlimited."""

    name: str
    soft: int
    hard: int


class ContainerConfig(Record):
    """A container to be made. Sizes are in bytes, times in seconds.

    Either ``image`` (a reference) or ``rootfs`` (an absolute path of the host, used as it is) is given.
    Fields that are ``None`` take the image's value, and after it docker's default.
    """

    image: str = ""
    rootfs: str | None = None
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None  # () clears the image's
    env: Mapping[str, str | None] = field(default_factory=dict)  # None: unset, also where the image sets it
    user: str | None = None  # user, uid, user:group, uid:gid
    group_add: tuple[str, ...] = ()
    workdir: str | None = None
    hostname: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    tty: bool = False
    stdin: bool = False  # -i: keep stdin open; else the program reads /dev/null
    size: tuple[int, int] | None = None  # columns, rows of the terminal at the start

    network: Network = "none"
    add_host: tuple[tuple[str, str], ...] = ()  # (name, address or "host-gateway")
    dns: tuple[str, ...] = ()

    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    read_only: bool = False
    shm_size: int = 64 << 20

    memory: int | None = None
    memory_swap: int | None = None  # memory plus swap; None: the same as memory; -1: unlimited
    cpus: float | None = None
    pids_limit: int | None = 2048  # None or -1: unlimited
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)

    cap_add: tuple[str, ...] = ()  # without CAP_, in upper case; or ALL
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privileges: bool = False
    seccomp: str | None = None  # None: the default profile; "unconfined"; or a profile's JSON text
    unmask: bool = False  # paths of /proc and /sys are neither masked nor read-only

    init: bool = False
    stop_signal: int | None = None
    stop_timeout: float = 10.0

    pull: PullPolicy = "missing"
    platform: str | None = None  # os/arch[/variant]


class ExecConfig(Record):
    """A further process in a running container; ``None`` takes the container's own value."""

    command: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)  # None: unset, also where the container sets it
    user: str | None = None
    workdir: str | None = None
    tty: bool = False
    stdin: bool = False
    size: tuple[int, int] | None = None
    privileged: bool = False
