"""The mounts of a container in the order in which they are made. Pure.

Invariant: a mount comes after every mount that it lies under, and each target occurs once: the user's mounts take the
place of the default ones, and one over /dev takes the place of all that lies below it.
"""

from __future__ import annotations

import posixpath

from crungo.parsing.mounts import check_targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crungo.config import ContainerConfig, Mount
    from crungo.runtime.host import HostFacts

__all__ = ["ETC_FILES", "INIT_TARGET", "MASKED_PATHS", "READ_ONLY_PATHS", "container_mounts"]

ETC_FILES = ("hosts", "hostname", "resolv.conf")
INIT_TARGET = "/run/crungo-init"

# What would tell of the host, or reach its hardware, and is not in a namespace.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
# What would change the host.
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# mount_setattr(2) makes a whole tree read-only; before it, `ro` holds for the topmost mount alone.
_RECURSIVE_READ_ONLY_SINCE = (5, 12)


def container_mounts(
    config: ContainerConfig, *, directory: str, image_volumes: tuple[str, ...], host: HostFacts
) -> list[dict[str, Any]]:
    """The ``mounts`` list; ``directory`` holds the files of ``ETC_FILES`` on the host.

    Raises:
        UsageError: two mounts have the same target.
    """
    check_targets(config.mounts)
    targets = {mount.target for mount in config.mounts}
    ours = [_etc_mount(name, directory, read_only=config.read_only) for name in ETC_FILES]
    if config.read_only:
        ours += [_volume_mount(path) for path in _writable_volumes(image_volumes)]
    if config.init:
        options = ["bind", "rprivate", "ro", "nosuid", "nodev"]
        ours.append({"destination": INIT_TARGET, "type": "bind", "source": host.init_path, "options": options})
    defaults = [
        mount
        for mount in _default_mounts(config)
        if mount["destination"] not in targets and not ("/dev" in targets and mount["destination"].startswith("/dev/"))
    ]
    later = [mount for mount in ours if mount["destination"] not in targets]
    later += [_user_mount(mount, host) for mount in config.mounts]
    # The sort is stable: mounts of the same depth stay in the order in which they were given.
    return defaults + sorted(later, key=lambda mount: mount["destination"].count("/"))


def _default_mounts(config: ContainerConfig) -> list[dict[str, Any]]:
    access = "rw" if config.privileged else "ro"
    closed = ["nosuid", "noexec", "nodev"]
    shm = ["nosuid", "noexec", "nodev", "mode=1777", f"size={config.shm_size}"]
    # gid 5 is tty's in every distribution: grantpt(3) wants the terminals to be its.
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    table: tuple[tuple[str, str, list[str]], ...] = (
        ("/proc", "proc", closed),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", pts),
        ("/dev/shm", "tmpfs", shm),  # noqa: S108  # the container's
        ("/dev/mqueue", "mqueue", closed),
        ("/sys", "sysfs", [*closed, access]),
        ("/sys/fs/cgroup", "cgroup", [*closed, "relatime", access]),
    )
    sources = {"/dev/shm": "shm", "/dev/pts": "devpts", "/sys/fs/cgroup": "cgroup"}  # noqa: S108
    return [
        {"destination": target, "type": kind, "source": sources.get(target, kind), "options": options}
        for target, kind, options in table
    ]


def _etc_mount(name: str, directory: str, *, read_only: bool) -> dict[str, Any]:
    options = ["bind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": f"/etc/{name}", "type": "bind", "source": f"{directory}/{name}", "options": options}


def _writable_volumes(volumes: tuple[str, ...]) -> list[str]:
    """The image's volumes that can be mounted; the paths come from outside."""
    found = {"/" + posixpath.normpath(path).lstrip("/") for path in volumes if path.startswith("/")}
    return sorted(path for path in found if path != "/" and path.split("/")[1] not in ("dev", "proc", "sys"))


def _volume_mount(path: str) -> dict[str, Any]:
    """docker keeps an image's volumes writable under --read-only: a tmpfs with a copy of what the image has there."""
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "tmpcopyup"]}


def _user_mount(mount: Mount, host: HostFacts) -> dict[str, Any]:
    options = list(mount.options)
    if mount.type == "tmpfs":
        return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}
    if not {"bind", "rbind"} & set(options):  # libcrun would take it for a file system called "bind"
        options.insert(0, "rbind")
    if "ro" in options and "rbind" in options and host.kernel >= _RECURSIVE_READ_ONLY_SINCE:
        options[options.index("ro")] = "rro"
    return {"destination": mount.target, "type": "bind", "source": mount.source, "options": options}
