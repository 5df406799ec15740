"""A directory tree whose content belongs to somebody else, read and written without ever leaving it.

The tree is a container's root, seen through ``/proc/<pid>/root``, while its processes may change it at any moment.
Invariants: every path is resolved by openat2(2) with this root, so that no ``..`` and no link leads out of it, however
it is exchanged meanwhile; nothing but regular files and directories is ever opened, so that no FIFO and no device can
block or act; what is written appears by rename(2), whole, and never through a link in the last place.

All functions block, raise OSError, and are for worker threads.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crungo.runtime.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NewFile", "Tree", "error", "open_regular"]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
COPY = 1 << 20


class Tree:
    """The tree below a directory; owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def at(cls, path: str) -> Tree:
        """The tree below a directory that may be trusted itself."""
        return cls(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        os.close(self.fd)

    def locate(self, path: str) -> int:
        """An O_PATH descriptor of what is at ``path``, links followed."""
        return openat2(self.fd, _inside(path), os.O_PATH)

    def open_file(self, path: str) -> int:
        """A regular file for reading, links followed."""
        found = self.locate(path)
        try:
            return open_regular(found, os.O_RDONLY, path)
        finally:
            os.close(found)

    def list_below(self, base: int, path: str) -> int:
        """A directory below ``base`` that is reached through no link at all, for reading."""
        return openat2(base, path or ".", DIRECTORY | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def make_directory(self, path: str) -> int:
        """A directory, links followed, for reading; it and what is missing above it is made, with mode 0755."""
        parts = _parts(path)
        for count in range(len(parts) + 1):
            here = "/".join(parts[:count]) or "."
            try:
                fd = openat2(self.fd, here, DIRECTORY)
            except FileNotFoundError:
                with self.parent(here) as (above, name):
                    _make(above, name)
                fd = openat2(self.fd, here, DIRECTORY)
            if count < len(parts):
                os.close(fd)
        return fd

    @contextmanager
    def parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The directory that holds ``path``, links followed, for reading, and the last part of the path.

        Raises:
            OSError: also EINVAL when there is no last part (``/``), or it is ``..``.
        """
        parts = _parts(path)
        if not parts or parts[-1] == "..":
            raise error(errno.EINVAL, path)
        above = "/".join(parts[:-1]) or "."
        fd = self.make_directory(above) if make else openat2(self.fd, above, DIRECTORY)
        try:
            yield fd, parts[-1]
        finally:
            os.close(fd)

    def replace(self, path: str, make: Callable[[str, int], None]) -> None:
        """Put something at ``path``: ``make`` makes it under a temporary name in the directory of that descriptor."""
        with self.parent(path, make=True) as (above, name):
            temporary = _temporary()
            try:
                make(temporary, above)
                os.rename(temporary, name, src_dir_fd=above, dst_dir_fd=above)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=above)
                raise


class NewFile:
    """A regular file that is written under a temporary name, and put in its place when it is complete."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._path = path
        with tree.parent(path, make=True) as (above, self._name):
            self._temporary = _temporary()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._above = os.dup(above)
            try:
                self.fd = os.open(self._temporary, flags, 0o600, dir_fd=above)
            except BaseException:
                os.close(self._above)
                raise

    def write(self, data: bytes | memoryview) -> None:
        """Append all of ``data``."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.fd, left) :]

    def finish(self, mode: int | None, owner: tuple[int, int] | None, mtime_ns: int | None = None) -> None:
        """Give it its attributes and its name. What is None is taken from the file that was there, else 0644, 0:0."""
        before = self._before()
        if mode is None:
            mode = stat.S_IMODE(before.st_mode) if before else 0o644
        if owner is None:
            owner = (before.st_uid, before.st_gid) if before else (0, 0)
        os.fchown(self.fd, *owner)
        os.fchmod(self.fd, mode)  # after the owner: changing that takes setuid away
        if mtime_ns is not None:
            os.utime(self.fd, ns=(mtime_ns, mtime_ns))
        try:
            os.rename(self._temporary, self._name, src_dir_fd=self._above, dst_dir_fd=self._above)
        except OSError as problem:
            if problem.errno != errno.EBUSY:
                raise
            self._overwrite()  # something is mounted there, /etc/hosts for instance
        else:
            self._temporary = ""

    def close(self) -> None:
        """Forget it; without ``finish``, nothing of it stays."""
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._above)
        os.close(self.fd)
        os.close(self._above)

    def _before(self) -> os.stat_result | None:
        try:
            found = os.stat(self._name, dir_fd=self._above, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _overwrite(self) -> None:
        found = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._above)
        try:
            target = open_regular(found, os.O_WRONLY | os.O_TRUNC, self._path)
        finally:
            os.close(found)
        try:
            os.lseek(self.fd, 0, os.SEEK_SET)
            while os.sendfile(target, self.fd, None, COPY):
                pass
        finally:
            os.close(target)


def open_regular(found: int, flags: int, path: str) -> int:
    """Open the regular file of an O_PATH descriptor; OSError when it is something else."""
    mode = os.fstat(found).st_mode
    if stat.S_ISDIR(mode):
        raise error(errno.EISDIR, path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    # O_NONBLOCK: some files of /proc wait for news. The link leads to the very file that was looked at.
    return os.open(f"/proc/self/fd/{found}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def error(number: int, path: str) -> OSError:
    """The OSError of an error number."""
    return OSError(number, os.strerror(number), path)


def _parts(path: str) -> list[str]:
    if "\0" in path:
        raise error(errno.EINVAL, path)
    return [part for part in path.split("/") if part not in ("", ".")]


def _inside(path: str) -> str:
    return "/".join(_parts(path)) or "."


def _make(above: int, name: str) -> None:
    with suppress(FileExistsError):  # then it is a link that leads nowhere, or another was faster: opening it tells
        os.mkdir(name, 0o755, dir_fd=above)
        fd = os.open(name, DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.fchmod(fd, 0o755)  # whatever our umask is
        finally:
            os.close(fd)


def _temporary() -> str:
    return f".crungo-{secrets.token_hex(8)}"
