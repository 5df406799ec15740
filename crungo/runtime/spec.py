"""A container as an OCI runtime specification (1.0.2), from its configuration, its image and the host's facts. Pure.

Invariant: equal arguments give equal specifications, and every text in one can be written as JSON in UTF-8 without NUL.

``process.user`` is left as root: names mean something in the rootfs only, which is not mounted yet. HOME is left out
for the same reason: libcrun takes it from the rootfs's passwd.
"""

from __future__ import annotations

import posixpath

from crungo.errors import CommandNotFound, UsageError
from crungo.parsing.host import CAPABILITIES
from crungo.parsing.values import quote
from crungo.records import Record
from crungo.runtime.capabilities import container_capabilities
from crungo.runtime.limits import resources, rlimits, sysctls
from crungo.runtime.mounts import INIT_TARGET, MASKED_PATHS, READ_ONLY_PATHS, container_mounts
from crungo.runtime.names import SHORT
from crungo.runtime.seccomp import default_profile, user_profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from crungo.config import ContainerConfig, Device, ExecConfig
    from crungo.image.imageconfig import ImageConfig
    from crungo.runtime.host import DeviceNode, HostFacts

__all__ = [
    "DEFAULT_PATH",
    "ContainerPlace",
    "build_exec",
    "build_spec",
    "check_names",
    "check_text",
    "container_hostname",
    "seccomp_profile",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ContainerPlace(Record):
    """Where a container lives: its id, the absolute path where its root will be mounted, the absolute directory that
    holds the files of its /etc, and its path below the root of the cgroups."""

    id: str
    rootfs: str
    directory: str
    cgroups_path: str


def container_hostname(config: ContainerConfig, place: ContainerPlace, host: HostFacts) -> str:
    """What was asked for, else the host's own with its network, else the start of the id."""
    return config.hostname or (host.hostname if config.network == "host" else place.id[:SHORT])


def build_spec(
    config: ContainerConfig, image: ImageConfig | None, *, place: ContainerPlace, host: HostFacts
) -> dict[str, Any]:
    """The specification of a container of ``image``; ``None`` for one of a plain root file system.

    Parts of the result may be shared with other specifications: copy before changing.

    Raises:
        UsageError: the configuration contradicts itself, or neither it nor the image names a program.
        CommandNotFound: the program's name is empty.
        HostError: the host cannot give what was asked for.
    """
    capabilities = container_capabilities(config, host.capabilities)
    hostname = container_hostname(config, place, host)
    volumes = () if image is None else image.volumes
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": config.tty,
            "user": {"uid": 0, "gid": 0},
            "args": process_arguments(config, image),
            "env": [f"{name}={value}" for name, value in _environment(config, image, hostname, host).items()],
            "cwd": _working_directory(config, image),
            "capabilities": _capability_sets(capabilities),
            "noNewPrivileges": config.no_new_privileges,
        },
        "root": {"path": place.rootfs, "readonly": config.read_only},
        "hostname": hostname,
        "mounts": container_mounts(config, directory=place.directory, image_volumes=volumes, host=host),
        "annotations": {"io.container.manager": "crungo"},
        "linux": _linux(config, place, host),
    }
    if limits := rlimits(config, host):
        spec["process"]["rlimits"] = limits
    if config.tty and config.size is not None:
        spec["process"]["consoleSize"] = {"width": config.size[0], "height": config.size[1]}
    check_text(spec)
    # Last, because its thousand words are ours and need no look.
    if (seccomp := seccomp_profile(config, capabilities, host)) is not None:
        spec["linux"]["seccomp"] = seccomp
    return spec


def build_exec(config: ExecConfig, base: Mapping[str, Any], *, host: HostFacts) -> dict[str, Any]:
    """The OCI ``process`` object of a further process; ``base`` is the container's own.

    The user is left as the base's: its names are resolved in the rootfs.

    Raises:
        UsageError: there is no program, or a variable's name is none.
        CommandNotFound: its name is empty.
    """
    if not config.command:
        raise UsageError("no command: exec needs a program to run")
    _check_program(config.command[0])
    check_names(config.env)
    env: dict[str, str | None] = dict(entry.split("=", 1) for entry in base["env"])
    if config.tty:
        env.setdefault("TERM", host.term or "xterm")
    env.update(config.env)
    process = dict(base)
    process.pop("consoleSize", None)
    process |= {
        "terminal": config.tty,
        "args": list(config.command),
        "env": [f"{name}={value}" for name, value in env.items() if value is not None],
        "cwd": base["cwd"] if config.workdir is None else config.workdir,
    }
    if config.privileged:
        process["capabilities"] = _capability_sets([name for name in CAPABILITIES if name in host.capabilities])
    if config.tty and config.size is not None:
        process["consoleSize"] = {"width": config.size[0], "height": config.size[1]}
    check_text(process)
    return process


def process_arguments(config: ContainerConfig, image: ImageConfig | None) -> list[str]:
    """docker's rules: an entrypoint from the user, also an empty one, drops the image's command."""
    entrypoint = config.entrypoint
    command = config.command or ()
    if entrypoint is None:
        entrypoint = image.entrypoint if image is not None else ()
        command = command or (image.cmd if image is not None else ())
    arguments = [*entrypoint, *command]
    if not arguments:
        where = "the image has no default command" if image is not None else "a root file system has no default command"
        raise UsageError(f"no command: {where}, and none was given")
    _check_program(arguments[0])
    return [INIT_TARGET, "--", *arguments] if config.init else arguments


def _check_program(name: str) -> None:
    """The empty name is that of no file anywhere; libcrun would refuse it for reasons of its own."""
    if not name:
        raise CommandNotFound('exec "": executable file not found in $PATH')


def _environment(config: ContainerConfig, image: ImageConfig | None, hostname: str, host: HostFacts) -> dict[str, str]:
    env: dict[str, str | None] = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        env["TERM"] = host.term or "xterm"
    env["container"] = "crungo"
    if image is not None:
        env.update(image.environment)
    env.update(config.env)
    return {name: value for name, value in env.items() if value is not None}


def _working_directory(config: ContainerConfig, image: ImageConfig | None) -> str:
    path = config.workdir or (image.working_dir if image is not None else "")
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def _capability_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """docker's sets. Nothing is inheritable or ambient, so that a user other than root has none after its exec."""
    full = [f"CAP_{name}" for name in names]
    return {"bounding": full, "effective": full, "permitted": full, "inheritable": [], "ambient": []}


def _linux(config: ContainerConfig, place: ContainerPlace, host: HostFacts) -> dict[str, Any]:
    namespaces = ["pid", "ipc", "uts", "mount"]
    if config.network != "host":
        namespaces.append("network")
    if host.cgroup_version == 2:
        namespaces.append("cgroup")  # docker's choice: on v1 programs expect to see the host's hierarchy
    nodes = _device_nodes(config, host)
    linux: dict[str, Any] = {
        "namespaces": [{"type": name} for name in namespaces],
        "cgroupsPath": place.cgroups_path,
        "resources": resources(config, host, nodes),
    }
    if devices := _device_entries(config, host, nodes):
        linux["devices"] = devices
    if values := sysctls(config):
        linux["sysctl"] = values
    if not (config.privileged or config.unmask):
        linux["maskedPaths"] = list(MASKED_PATHS)
        linux["readonlyPaths"] = list(READ_ONLY_PATHS)
    # A mount inside a private root can neither receive nor send; the root's own propagation must not stand in the way.
    words = {option for mount in config.mounts for option in mount.options}
    if words & {"shared", "rshared"}:
        linux["rootfsPropagation"] = "shared"
    elif words & {"slave", "rslave"}:
        linux["rootfsPropagation"] = "slave"
    return linux


def _device_nodes(config: ContainerConfig, host: HostFacts) -> list[DeviceNode]:
    """The host's nodes of ``--device``; a directory stands for all below it."""
    return [node for device in config.devices for node in host.devices_at(device.source)]


def _device_entries(config: ContainerConfig, host: HostFacts, nodes: Sequence[DeviceNode]) -> list[dict[str, Any]]:
    """The ``linux.devices`` list; of two nodes with one path, the one asked for wins."""
    entries = {node.path: _entry(node, node.path) for node in host.all_devices()} if config.privileged else {}
    for device in config.devices:
        for node in nodes:
            if node.path == device.source or node.path.startswith(f"{device.source}/"):
                path = _moved(node.path, device)
                entries[path] = _entry(node, path)
    return list(entries.values())


def _moved(path: str, device: Device) -> str:
    return device.target + path[len(device.source) :]


def _entry(node: DeviceNode, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "type": node.type,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def seccomp_profile(config: ContainerConfig, capabilities: Sequence[str], host: HostFacts) -> dict[str, Any] | None:
    """The ``linux.seccomp`` object; ``None`` for no filter.

    Raises:
        UsageError: the user's profile is none.
    """
    granted = frozenset(capabilities)
    if config.seccomp == "unconfined" or (config.seccomp is None and config.privileged):
        return None
    if config.seccomp is None:
        return default_profile(granted, host.architecture)
    return user_profile(config.seccomp, granted, architecture=host.architecture, kernel=host.kernel)


def check_names(env: Iterable[str]) -> None:
    """Refuse what cannot name a variable of the environment.

    Raises:
        UsageError: a name is empty, or holds what would end it.
    """
    for name in env:
        if not name or "=" in name:
            raise UsageError(f"environment variable {quote(name)}: not a name")


def check_text(value: object) -> None:
    """Refuse texts that JSON in UTF-8, or a C string, cannot hold.

    Raises:
        UsageError: one has a NUL or a lone surrogate (which is how arguments in other encodings arrive).
    """
    if isinstance(value, str):
        if "\0" in value or not (value.isascii() or _encodable(value)):
            raise UsageError(f"{quote(value)}: not a text in UTF-8 without NUL characters")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            check_text(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_text(item)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
