"""What a refusal of libcrun's means to whoever asked for the container.

libcrun names the path at which it stopped, in back quotes, and errno. What was asked for at that path is what is wrong,
and only the configuration knows its other half: the source, the flag.
"""

from __future__ import annotations

import errno
import os
import re
import resource

from crungo.errors import ContainerError, HostError
from crungo.parsing.values import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from crungo.config import ContainerConfig, Mount
    from crungo.errors import CrungoError, LibcrunError

__all__ = ["explain", "wrong_directory"]

_SYSCTLS = "/proc/sys/"
_KERNELS = ("/proc", "/sys")  # file systems in which nothing can be made


def explain(error: LibcrunError, config: ContainerConfig, *, identifier: str) -> CrungoError | None:
    """The error to raise in place of a refusal to make the container of ``config``, in the user's own terms; None
    where it is about nothing that was asked for.

    ``identifier`` is its id.
    """
    if error.errno == 0:
        return None
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return HostError(
            f"create container: it takes more open files than the hard limit of this process: {limit}",
            hint="raise the limit: ulimit -Hn, or LimitNOFILE= of its service",
        )
    named = _named(error.reason, identifier)
    for name, value in config.sysctls.items():
        if _SYSCTLS + name.replace(".", "/") in named:
            why = "the kernel has none of this name" if error.errno == errno.ENOENT else os.strerror(error.errno)
            return ContainerError(f"--sysctl {name}={value}: {why}")
    for device in config.devices:
        if device.target in named:
            return ContainerError(
                f"device {quote(device.source)} on {quote(device.target)}: {os.strerror(error.errno)}"
            )
    # One whose target is named, before one that lies below what is named.
    for mount in sorted(config.mounts, key=lambda mount: mount.target not in named):
        if (path := _obstacle(mount.target, named)) is not None:
            return _mount_error(mount, path, error)
    return wrong_directory(error.reason, error.errno)


def wrong_directory(reason: str, number: int) -> ContainerError | None:
    """The error of a process that could not start in its working directory; None where that is not the reason."""
    found = re.match(r"chdir to `(.*)`", reason, re.DOTALL)
    return None if found is None else ContainerError(f"working directory {quote(found[1])}: {os.strerror(number)}")


def _named(reason: str, identifier: str) -> list[str]:
    """The paths in a message as the container sees them, without the source of a mount.

    libcrun writes some with the root before them, and some without the first slash.
    """
    paths = re.findall(r"`([^`]*)`", re.sub(r"^mount `[^`]*` to ", "", reason))
    return ["/" + path.rpartition(f"/{identifier}/rootfs")[2].lstrip("/") for path in paths]


def _obstacle(target: str, named: Iterable[str]) -> str | None:
    """The shortest path among those named that is the target or lies above it, or that the container needs in /dev."""
    found = [path for path in named if path != "/" and f"{target}/".startswith(f"{path}/")]
    found += [path for path in named if target == "/dev" and path.startswith("/dev/")]
    return min(found, key=len, default=None)


def _mount_error(mount: Mount, path: str, error: LibcrunError) -> ContainerError:
    number = error.errno
    what = f"mount {'tmpfs' if mount.type == 'tmpfs' else quote(mount.source)} on {quote(mount.target)}"
    if path != mount.target and mount.target == "/dev":
        return ContainerError(
            f"{what}: the container needs {path}, which is not there",
            hint="mount the host's /dev, or what shall be in it one by one",
        )
    if number == errno.ENOTDIR and path != mount.target:
        return ContainerError(f"{what}: {quote(path)} is not a directory")
    if number == errno.ENOTDIR and not error.reason.startswith("mount "):
        return ContainerError(f"{what}: a part of the path is not a directory")
    if number in (errno.ENOTDIR, errno.EISDIR):
        source, target = "a directory", "a file"
        if mount.type == "bind" and not os.path.isdir(mount.source):
            source, target = target, source
        return ContainerError(f"{what}: {source} cannot be mounted on {target}; both must be of the same kind")
    kernels = next((root for root in _KERNELS if mount.target.startswith(f"{root}/")), None)
    if kernels is not None:
        return ContainerError(f"{what}: nothing is there, and nothing can be made below {kernels}")
    hint = None
    if number in (errno.EROFS, errno.ENOENT):
        hint = "nothing can be made there to mount on: it is in a read-only mount, or below a link that leads nowhere"
    return ContainerError(f"{what}: {os.strerror(number)}", hint=hint)
