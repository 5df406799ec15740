"""Tar archives out of and into a :class:`crungo.runtime.tree.Tree`, as streams, with little memory.

Invariant: neither side is trusted. An archive may name anything, and the tree may change while it is read: what is
written stays in the tree, and what is read is a well-formed archive. For worker threads; OSError and tarfile.TarError.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import IO, TYPE_CHECKING

from crungo.openfiles import LIMITS
from crungo.runtime.tree import NewFile, Tree, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pack", "unpack"]

COPY = 1 << 20
LARGEST_HEADER = 1 << 20
"""Bytes of a pax or long-name header: tarfile reads it into memory."""

_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_SEPARATE = ("proc", "sys", "dev")  # not files of the container


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > LARGEST_HEADER:
            raise tarfile.ReadError("a header is too large")
        return member


def unpack(
    tree: Tree, path: str, source: IO[bytes], *, owner: tuple[int, int] | None = None, special_bits: bool = True
) -> None:
    """Unpack an archive into the directory ``path``, made if it is missing.

    Files and links replace what is there, except directories; directories are merged. ``owner`` replaces the owners in
    the archive; without ``special_bits``, nothing becomes setuid or setgid.
    """
    os.close(tree.make_directory(path))
    allowed = 0o7777 if special_bits else 0o1777
    with tarfile.open(fileobj=source, mode="r|*", tarinfo=_Member, errorlevel=2) as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or a long archive would fill the memory
            if ".." in member.name.split("/"):
                raise tarfile.ReadError(f"{member.name!r} leads out of the archive")
            place = f"{path}/{member.name}"
            owners = (member.uid, member.gid) if owner is None else owner
            if member.isdir():
                _make_directory(tree, place, member.mode & allowed, owners)
            elif member.isreg():
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                _write_file(tree, place, content, mode=member.mode & allowed, owner=owners, mtime=member.mtime)
            else:
                _make_other(tree, path, place, member, owners)


def _make_directory(tree: Tree, place: str, mode: int, owner: tuple[int, int]) -> None:
    fd = tree.make_directory(place)
    try:
        if _is_link(tree, place):
            return  # to a directory, which is somebody else's
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _is_link(tree: Tree, place: str) -> bool:
    try:
        with tree.parent(place) as (above, name):
            return stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    except OSError as problem:
        if problem.errno in LIMITS:
            raise
        return False  # the root has no parent


def _write_file(tree: Tree, place: str, content: IO[bytes], *, mode: int, owner: tuple[int, int], mtime: float) -> None:
    new = NewFile(tree, place)
    try:
        while data := content.read(COPY):
            new.write(data)
        new.finish(mode, owner, int(mtime * 1_000_000_000))
    finally:
        new.close()


def _make_other(tree: Tree, path: str, place: str, member: tarfile.TarInfo, owner: tuple[int, int]) -> None:
    if member.issym():

        def make(name: str, above: int) -> None:
            os.symlink(member.linkname, name, dir_fd=above)
            os.chown(name, *owner, dir_fd=above, follow_symlinks=False)

    elif member.islnk():
        if ".." in member.linkname.split("/"):
            raise tarfile.ReadError(f"{member.name!r} is a link that leads out of the archive")

        def make(name: str, above: int) -> None:
            with tree.parent(f"{path}/{member.linkname}") as (other, target):
                os.link(target, name, src_dir_fd=other, dst_dir_fd=above, follow_symlinks=False)

    elif member.isfifo():

        def make(name: str, above: int) -> None:
            os.mkfifo(name, member.mode & 0o777, dir_fd=above)
            os.chown(name, *owner, dir_fd=above, follow_symlinks=False)

    else:
        raise tarfile.ReadError(f"{member.name!r} is a device, or of a kind that is not known")
    tree.replace(place, make)


def pack(tree: Tree, path: str, target: IO[bytes], *, prefix: str | None = None) -> None:
    """Write what is at ``path``, with all below it, as an archive; names begin with ``prefix``, else its last part."""
    base = tree.locate(path)
    try:
        if prefix is None:
            prefix = path.rstrip("/").rpartition("/")[2] or "."
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=COPY) as archive:
            writer = _Writer(archive)
            if not stat.S_ISDIR(os.fstat(base).st_mode):
                writer.add(base, prefix)
                return
            for fd, name in _walk(tree, base):
                writer.add(fd, f"{prefix}/{name}" if name else prefix)
    finally:
        os.close(base)


def _walk(tree: Tree, base: int) -> Iterator[tuple[int, str]]:
    """O_PATH descriptors, lent, of a directory and all below it, with their paths relative to it."""
    skipped = _separate(tree)
    yield base, ""
    stack = [""]
    while stack:
        here = stack.pop()
        try:
            directory = tree.list_below(base, here)
        except OSError as problem:
            if here and problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue  # gone, or exchanged, since it was seen
            raise
        try:
            for name in sorted(os.listdir(directory)):
                try:
                    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                except FileNotFoundError:
                    continue
                try:
                    found = os.fstat(fd)
                    below = f"{here}/{name}" if here else name
                    yield fd, below
                    if stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in skipped:
                        stack.append(below)
                finally:
                    os.close(fd)
        finally:
            os.close(directory)


def _separate(tree: Tree) -> set[tuple[int, int]]:
    found = set()
    for name in _SEPARATE:
        try:
            fd = tree.locate(name)
        except OSError as problem:
            if problem.errno in LIMITS:
                raise
            continue
        status = os.fstat(fd)
        os.close(fd)
        found.add((status.st_dev, status.st_ino))
    return found


class _Writer:
    """Adds files by O_PATH descriptors."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._linked: dict[tuple[int, int], str] = {}

    def add(self, fd: int, name: str) -> None:
        status = os.fstat(fd)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # a socket, which no archive can hold
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.mtime = kind, stat.S_IMODE(status.st_mode), int(status.st_mtime)
        member.uid, member.gid = status.st_uid, status.st_gid
        if kind == tarfile.SYMTYPE:
            member.linkname = os.readlink("", dir_fd=fd)
        elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif kind == tarfile.REGTYPE:
            self._add_file(fd, member, status)
            return
        self._archive.addfile(member)
        self._archive.members = []  # type: ignore[attr-defined]

    def _add_file(self, fd: int, member: tarfile.TarInfo, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), member.name)
            if first != member.name:
                member.type, member.linkname = tarfile.LNKTYPE, first
                self._archive.addfile(member)
                return
        member.size = status.st_size
        with open(open_regular(fd, os.O_RDONLY, member.name), "rb") as content:
            self._archive.addfile(member, _Exactly(content))
        self._archive.members = []  # type: ignore[attr-defined]


_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


class _Exactly:
    """A file that never ends: one that was shortened since its size was written has zeros in place of the rest."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content

    def read(self, size: int = COPY, /) -> bytes:
        return (self._content.read(size) or b"").ljust(size, b"\0")
