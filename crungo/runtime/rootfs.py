"""The container's root file system, assembled in the private mount namespace of one child process.

Invariant: nothing here is ever visible in the host's mount table. The overlay exists in the namespace of the child that
mounts it and, by inheritance, in the container's own; the kernel takes it away with the last process of the two.
"""

from __future__ import annotations

import os
import stat

from crungo.errors import ContainerError, HostError
from crungo.runtime import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["assemble_overlay", "bind_directory", "open_root", "read_file", "remove_dead_links", "require_directories"]

KEEP_REAL = ("dev", "proc", "sys")
FILE_LIMIT = 4 << 20


def assemble_overlay(layers: Sequence[str], directory: str) -> str:
    """Mount an overlay of ``layers`` (lowest first) and the container's own ``upper``; returns the mount point.

    Layers are named by descriptor, ``fd/12``, relative to ``/proc/self``: mount(2) takes one page of options, which
    full paths of some forty layers would already overflow, and a name like this holds neither ``:`` nor ``,``.

    ``volatile`` leaves out every sync (kernel document filesystems/overlayfs): the upper directory dies with the
    container, and without it the kernel would write the whole file system back when the overlay is unmounted.
    """
    target = f"{directory}/rootfs"
    upper, work = f"{directory}/upper", f"{directory}/work"
    for path in (target, upper, work):
        os.mkdir(path, 0o755)
    _copy_root_attributes(layers[-1], upper)
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (*reversed(layers), upper, work)]
    names = [f"fd/{fd}" for fd in fds]
    options = f"lowerdir={':'.join(names[:-2])},upperdir={names[-2]},workdir={names[-1]}"
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir("/proc/self")
        try:
            syscalls.mount("overlay", target, "overlay", 0, f"{options},volatile")
        except OSError:
            # Kernels before 5.10 do not know `volatile`; any other reason shows up again in the second try.
            syscalls.mount("overlay", target, "overlay", 0, options)
    except OSError as error:
        raise HostError(
            f"mount the container's root: {error.strerror}",
            hint="the store must be on a file system that can hold an overlay's upper directory (ext4, xfs, tmpfs)",
        ) from error
    finally:
        os.fchdir(before)
        for fd in (*fds, before):
            os.close(fd)
    return target


def bind_directory(source: str, directory: str) -> str:
    """Use a directory of the host as the root, as it is; returns the mount point."""
    target = f"{directory}/rootfs"
    os.mkdir(target, 0o755)
    try:
        syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
    except OSError as error:
        raise ContainerError(f"root file system {source}: {error.strerror}") from error
    return target


def open_root(target: str) -> int:
    """A descriptor of the root for the functions below."""
    return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def require_directories(root: int, *, repair: bool) -> None:
    """Make sure that ``/dev``, ``/proc`` and ``/sys`` are real directories, before anything is mounted on them.

    A symbolic link there would send libcrun's mounts and device nodes to where the image says (CVE-2026-47766). In
    an overlay it is replaced, which touches only the upper layer; a directory of the host is never changed.
    """
    for name in KEEP_REAL:
        try:
            mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
        except FileNotFoundError:
            mode = 0
        if stat.S_ISDIR(mode):
            continue
        if not repair and mode:
            raise ContainerError(f"root file system: /{name} is not a directory")
        if mode:
            os.unlink(name, dir_fd=root)
        os.mkdir(name, 0o755, dir_fd=root)


def remove_dead_links(root: int, names: Iterable[str]) -> None:
    """Remove symbolic links of these names in ``/etc`` that lead nowhere within the root; only for an overlay.

    Files are mounted on them, for which libcrun makes a missing file but not a missing target. Images of whole systems
    have ``resolv.conf`` as a link to what a service would write.
    """
    try:
        etc = syscalls.openat2(root, "etc", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return  # libcrun makes it, or says why it cannot
    try:
        for name in names:
            try:
                os.close(syscalls.openat2(root, f"etc/{name}", os.O_PATH))
            except OSError:
                try:
                    os.unlink(name, dir_fd=etc)
                except FileNotFoundError:
                    pass
    finally:
        os.close(etc)


def read_file(root: int, path: str) -> bytes:
    """The content of a regular file below the root, empty when there is none; no link leaves the root."""
    try:
        # An image may hold a FIFO or a device of that name. To open a device is to act on it (a watchdog starts), and
        # no limit on devices holds here: so it is looked at first, and what was looked at is what is opened.
        found = syscalls.openat2(root, path, os.O_PATH)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return b""
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return b""
    finally:
        os.close(found)
    with open(fd, "rb") as file:
        # Nothing where a read would wait for news, as of some files of /proc.
        content = file.read(FILE_LIMIT + 1) or b""
    if len(content) > FILE_LIMIT:
        raise ContainerError(f"/{path} of the image is larger than {FILE_LIMIT >> 20} MiB")
    return content


def _copy_root_attributes(layer: str, upper: str) -> None:
    """The merged root has the attributes of the upper directory: make them the image's."""
    info = os.stat(layer)
    os.chown(upper, info.st_uid, info.st_gid)
    os.chmod(upper, stat.S_IMODE(info.st_mode))
