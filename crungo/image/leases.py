"""Leases: content that a running process needs, though no name may lead to it (yet, or any more).

A lease is a file that lists digests and is locked by its process: it ends with the process, whatever ends it. Leases
are made, and read before something is removed, while the store's lock is held, so that neither misses the other.
"""

from __future__ import annotations

import os
from contextlib import suppress

from crungo.image.digest import is_digest
from crungo.image.layout import write_all
from crungo.image.locks import open_locked, try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from crungo.image.layout import Layout

__all__ = ["Lease", "holders", "leased", "remove_stale_leases"]

_HOLDER = "# "


class Lease:
    """A claim on content, until it is closed or forgotten. The store's lock must be held while it is made.

    ``holder`` says in words who uses the content; a claim without one only keeps it, as a pull does.
    """

    _fd = -1

    def __init__(self, layout: Layout, digests: Iterable[str], holder: str = "") -> None:
        self._path = f"{layout.leases}/{os.urandom(8).hex()}"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try_lock(self._fd)
            lines = [f"{_HOLDER}{holder}"] if holder else []
            text = "".join(f"{line}\n" for line in (*lines, *sorted(set(digests))))
            write_all(self._fd, text.encode(), self._path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the claim up; again does nothing."""
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # Whoever had it made in a thread may have been cancelled before it came: nobody else knows of it.
        self.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def leased(layout: Layout) -> set[str]:
    """The digests that live processes hold. The store's lock must be held."""
    return {line for lines in _alive(layout) for line in lines if is_digest(line)}


def holders(layout: Layout) -> dict[str, list[str]]:
    """Who uses what: the holders of each digest. The store's lock must be held."""
    found: dict[str, list[str]] = {}
    for first, *rest in _alive(layout):
        if first.startswith(_HOLDER):
            for digest in rest:
                found.setdefault(digest, []).append(first.removeprefix(_HOLDER))
    return found


def _alive(layout: Layout) -> Iterator[list[str]]:
    """The lines of each lease whose process lives."""
    for path in _files(layout):
        fd = open_locked(path)
        if fd is not None:  # nobody holds it: its process is gone
            os.close(fd)
            continue
        with suppress(FileNotFoundError), open(path, encoding="ascii", errors="replace") as file:
            if lines := file.read().splitlines():
                yield lines


def _files(layout: Layout) -> list[str]:
    """The paths of all that may be leases."""
    with os.scandir(layout.leases) as found:
        return [entry.path for entry in found if entry.is_file(follow_symlinks=False)]


def remove_stale_leases(layout: Layout) -> int:
    """Remove what dead processes left; how many there were. The store's lock must be held."""
    removed = 0
    for path in _files(layout):
        fd = open_locked(path)
        if fd is not None:
            os.unlink(path)
            os.close(fd)
            removed += 1
    return removed
