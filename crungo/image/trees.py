"""Directory trees whose content nobody vouches for: removed, measured and compared without following a link.

Invariant: no function recurses with the tree or holds more than a few descriptors, however deep the tree is: an
archive can nest directories deeper than the interpreter's stack and the limit of open files allow.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from itertools import count

from crungo.image.locks import open_locked
from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["Entry", "dispose", "differences", "entries", "remove_tree", "tree_size"]

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 128 << 10  # bytes


def remove_tree(path: str) -> None:
    """Remove a file, or a directory and all below it; what is already gone is fine.

    Each directory found is first moved up to the top, so that the tree is flat while it goes.

    Raises:
        OSError: something could not be removed, or another process still adds to the tree.
    """
    try:
        top = os.open(path, _OPEN)
    except FileNotFoundError:
        return
    except NotADirectoryError:  # also a symbolic link
        os.unlink(path)
        return
    try:
        fresh = (b".gone-%d" % number for number in count())
        while directories := _empty(top, top, fresh):
            for name in directories:
                fd = _open_at(name, top)
                try:
                    _empty(fd, top, fresh)
                finally:
                    os.close(fd)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def dispose(path: str) -> None:
    """Remove a tree that was put aside, unless another process is already removing it."""
    fd = open_locked(path)
    if fd is not None:
        try:
            remove_tree(path)
        finally:
            os.close(fd)


def _empty(fd: int, top: int, fresh: Iterator[bytes]) -> list[bytes]:
    """Unlink the files of a directory. Its directories are moved to the top, or listed when it is the top itself."""
    directories: list[bytes] = []
    for name, is_directory in _names(fd):
        if not is_directory:
            os.unlink(name, dir_fd=fd)
        elif fd == top:
            directories.append(name)
        else:
            _move_up(name, fd, top, fresh)
    return directories


def _move_up(name: bytes, fd: int, top: int, fresh: Iterator[bytes]) -> None:
    if os.geteuid() != 0:  # moving a directory changes its "..", for which it must be writable
        os.close(_open_at(name, fd))
    for target in fresh:
        try:
            os.rename(name, target, src_dir_fd=fd, dst_dir_fd=top)
        except OSError:
            if not _exists(target, top):
                raise
            continue  # a directory of the tree's own has this name and is not empty
        return


def _exists(name: bytes, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open_at(name: bytes, parent: int) -> int:
    """Open a directory, made readable and writable first where the user is not root and its mode forbids it."""
    if os.geteuid() != 0:
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if os.fstat(handle).st_mode & 0o700 != 0o700:
                os.chmod(f"/proc/self/fd/{handle}", 0o700)  # fchmod(2) refuses descriptors of O_PATH
        finally:
            os.close(handle)
    return os.open(name, _OPEN, dir_fd=parent)


def _names(fd: int) -> list[tuple[bytes, bool]]:
    """Names in a directory, as bytes, and whether each is a directory; sorted."""
    with os.scandir(fd) as listing:
        return sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in listing)


class Entry(Record):
    """One object of a tree: ``path`` relative to its top (empty for the top itself), in parts; ``name`` in ``parent``.

    ``parent`` is a directory descriptor that is valid only until the next entry is asked for.
    """

    path: tuple[bytes, ...]
    status: os.stat_result
    name: bytes
    parent: int


def entries(path: str) -> Iterator[Entry]:
    """All objects of a tree, parents before children, names in order of their bytes."""
    fd = os.open(path, _OPEN)
    try:
        yield Entry(path=(), status=os.fstat(fd), name=b".", parent=fd)
        here: list[bytes] = []
        pending = [iter(_names(fd))]
        while pending:
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                if here:  # one level up, with one descriptor in hand instead of one per level
                    here.pop()
                    fd = _replace(fd, b"..")
                continue
            name, is_directory = step
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield Entry(path=(*here, name), status=status, name=name, parent=fd)
            if is_directory:
                fd = _replace(fd, name)
                here.append(name)
                pending.append(iter(_names(fd)))
    finally:
        os.close(fd)


def _replace(fd: int, name: bytes) -> int:
    new = os.open(name, _OPEN, dir_fd=fd)
    os.close(fd)
    return new


def tree_size(path: str) -> int:
    """Bytes on disk of a file or of a tree; what vanishes meanwhile, or is gone, counts nothing."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return os.lstat(path).st_blocks * 512
        return sum(entry.status.st_blocks for entry in entries(path)) * 512
    except FileNotFoundError:
        return 0


def differences(left: str, right: str, *, most: int = 10) -> list[str]:
    """Where two trees differ in type, mode, owner, time, size, content, extended attributes, devices or links.

    Times of access and of status change, and numbers of inodes, are not compared. At most ``most`` are listed.
    """
    found: list[str] = []
    ours, theirs = _signatures(left), _signatures(right)
    one, two = next(ours, None), next(theirs, None)
    while (one or two) and len(found) < most:
        if two is None or (one is not None and one[0] < two[0]):
            assert one is not None
            found.append(f"{_shown(one[0])}: should not be there")
            one = next(ours, None)
        elif one is None or two[0] < one[0]:
            found.append(f"{_shown(two[0])}: is missing")
            two = next(theirs, None)
        else:
            keys = [key for key in sorted(one[1].keys() | two[1].keys()) if one[1].get(key) != two[1].get(key)]
            if keys:
                found.append(f"{_shown(one[0])}: differs in {', '.join(keys)}")
            one, two = next(ours, None), next(theirs, None)
    ours.close()
    theirs.close()
    return found


def _shown(path: tuple[bytes, ...]) -> str:
    return ascii("/" + b"/".join(path).decode("utf-8", "replace"))


def _signatures(path: str) -> Generator[tuple[tuple[bytes, ...], dict[str, object]], None, None]:
    first_names: dict[int, tuple[bytes, ...]] = {}
    for entry in entries(path):
        status = entry.status
        kind = stat.S_IFMT(status.st_mode)
        signature: dict[str, object] = {
            "type": kind,
            "mode": stat.S_IMODE(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "time": status.st_mtime_ns,
            "attributes": _attributes(entry),
        }
        if kind != stat.S_IFDIR:
            signature["links"] = (status.st_nlink, first_names.setdefault(status.st_ino, entry.path))
        if kind == stat.S_IFREG:
            signature["size"] = status.st_size
            signature["content"] = _content(entry)
        elif kind == stat.S_IFLNK:
            signature["target"] = os.readlink(entry.name, dir_fd=entry.parent)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            signature["device"] = status.st_rdev
        yield entry.path, signature


def _content(entry: Entry) -> bytes:
    """A digest of what a file holds, be its zeros there or a hole.

    Nothing is read of holes: an archive of a few bytes can have files that are larger than any disk.
    """
    state = hashlib.blake2b()
    fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.parent)
    try:
        at = 0
        while True:
            at = os.lseek(fd, at, os.SEEK_DATA) // _PIECE * _PIECE
            piece = os.pread(fd, _PIECE, at)
            if piece.count(0) < len(piece):
                state.update(at.to_bytes(8, "little") + piece)
            at += _PIECE
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data from there on
            raise
    finally:
        os.close(fd)
    return state.digest()


def _attributes(entry: Entry) -> tuple[tuple[str, bytes], ...]:
    # There is no listxattrat(2) in Python; the parent's descriptor makes a short path that leads nowhere else.
    path = os.fsencode(f"/proc/self/fd/{entry.parent}/") + entry.name
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    except OSError:  # a file system without extended attributes
        return ()
