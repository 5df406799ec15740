"""Run the unpacker as the spawner does, and look at what it made."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crungo.runtime import wire
from crungo.runtime.unpacking import failure_text, mark
from crungo.runtime.unpackserver import UnpackServer
from tests.support.tarballs import Entry, archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The last message, and how the child ended (``os.waitstatus_to_exitcode``)."""

    message: dict[str, Any]
    exit: int
    peak: int  # resident memory at most, in KiB
    cpu: float  # seconds of a processor

    @property
    def error(self) -> str:
        """The error's message, or an empty string."""
        return failure_text(self.message) if self.message["event"] == "error" else ""


_server = UnpackServer()  # before any test looks at which processes and descriptors there are


class Running:
    """A child that unpacks; the caller says how much of the blob there is. ``more`` descriptors come with its order."""

    def __init__(self, blob: Path, directory: Path, *, more: int = 0, **options: Any) -> None:
        options = {"limit": 1 << 40, "size": None, **options}
        self.channel, its = wire.pair()
        fds = [os.open(blob, os.O_RDONLY), os.open(directory, os.O_RDONLY | os.O_DIRECTORY), its.detach()]
        fds += [os.dup(fds[0]) for _ in range(more)]
        self.pid = _server.order(fds, **options)
        for fd in fds:
            os.close(fd)

    def send(self, available: int, *, ended: bool = False) -> None:
        wire.send_packet(self.channel, mark(available, ended=ended))

    def finish(self) -> Outcome:
        """Wait for the last message and the child's end."""
        last: dict[str, Any] = {"event": "none"}
        while (message := wire.recv_text(self.channel)) is not None:
            last = message
        self.channel.close()
        _, status, usage = os.wait4(self.pid, 0)
        cpu = usage.ru_utime + usage.ru_stime
        return Outcome(message=last, exit=os.waitstatus_to_exitcode(status), peak=usage.ru_maxrss, cpu=cpu)


by_threads = False
"""A small blob that is complete from the beginning is unpacked by one thread, others by several."""


def unpack_bytes(blob: bytes, directory: Path, **options: Any) -> Outcome:
    """Unpack a whole blob into a directory, made if it is missing."""
    directory.mkdir(exist_ok=True)
    path = directory.with_name(directory.name + ".blob")
    path.write_bytes(blob)
    if not by_threads:
        return Running(path, directory, size=len(blob), **options).finish()
    running = Running(path, directory, **options)
    running.send(len(blob))
    running.send(len(blob), ended=True)
    return running.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One file of a tree; ``links`` are all names of the same file."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime: int  # ns
    content: bytes = b""  # of a file; the target of a symbolic link
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    links: tuple[bytes, ...] = ()

    @property
    def whiteout(self) -> bool:
        """Whether it hides its name in lower layers."""
        return self.kind == "char" and self.device == (0, 0)


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def survey(directory: Path) -> dict[bytes, Seen]:
    """What a tree holds, by path below the directory; ``b"."`` is itself."""
    root = os.fsencode(directory)
    statuses: dict[bytes, os.stat_result] = {b".": os.lstat(root)}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            statuses[os.path.relpath(path, root)] = os.lstat(path)
    names: dict[int, list[bytes]] = {}
    for path, status in statuses.items():
        names.setdefault(status.st_ino, []).append(path)
    return {path: _seen(os.path.join(root, path), s, names[s.st_ino]) for path, s in statuses.items()}


def _seen(path: bytes, status: os.stat_result, names: list[bytes]) -> Seen:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    content = b""
    if kind == "file":
        content = Path(os.fsdecode(path)).read_bytes()
    elif kind == "symlink":
        content = os.readlink(path)
    return Seen(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        mtime=status.st_mtime_ns,
        content=content,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        xattrs=tuple((k, os.getxattr(path, k, follow_symlinks=False)) for k in sorted(_xattr_names(path))),
        links=tuple(sorted(names)),
    )


def _xattr_names(path: bytes) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def unpack_entries(tmp_path: Path, *entries: Entry, error: str = "") -> dict[bytes, Seen]:
    """Unpack entries into ``tmp_path/layer``; what they made, or nothing where an error with this text is expected."""
    target = tmp_path / "layer"
    outcome = unpack_bytes(archive(*entries), target)
    assert outcome.exit == 0
    if error:
        refused(outcome, error)
        return {}
    accepted(outcome)
    assert outcome.message["entries"] == len(entries)
    return survey(target)


def accepted(outcome: Outcome) -> None:
    """Assert that a layer was unpacked, and that the child ended in order."""
    assert outcome.exit == 0
    assert outcome.message["event"] == "unpacked", outcome.error


def refused(outcome: Outcome, *parts: str) -> None:
    """Assert that there was an error of one printable line, and an orderly end."""
    assert outcome.exit == 0
    assert outcome.message["event"] == "error", outcome.message
    assert outcome.error.isprintable()
    assert len(outcome.error) < 1200
    for part in parts:
        assert part in outcome.error
