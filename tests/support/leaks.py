"""What crungo must not leave behind: processes, mounts, cgroups, descriptors, files.

Two snapshots, before and after, are compared. The test process makes itself a subreaper, so that every process that
a test has started, however often it forked, stays among its descendants until it ends: a stray one is found by
descent and not by its name, and other users of the machine are not blamed. Nor are they for cgroups: those of the
tests' containers are known by the ids of these, which their stores list; nor for mounts, once the process has a mount
namespace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.events import Entries, Watch, wait_for_exit

__all__ = [
    "Snapshot",
    "become_subreaper",
    "descendants",
    "descriptors",
    "leave_others_mounts",
    "own_store",
    "settle",
    "sweep",
]

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MS_SHARED = 1 << 14, 1 << 18, 1 << 20
CGROUPS = Path("/sys/fs/cgroup")
STANDING = frozenset({"containers"})
"""Directories of a run root that stay once they are made; what is in them counts."""
DOWNLOADS = (".part", ".part.extents")
"""What a broken-off pull has fetched of a blob: the next pull goes on from there."""
_CONTAINER = re.compile(r"[0-9a-f]{64}")
LASTING = ".cache"
"""libcrun's cache of compiled seccomp filters, one for each profile whatever the number of containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process for certain: a pid is used again, a pid with its start time is not; execve(2) makes no other of it."""

    pid: int
    started: int
    command: str = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What there is now. ``folders`` are those whose every entry counts, such as a run root."""

    processes: frozenset[Process]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    descriptors: frozenset[str]
    files: frozenset[str]

    @classmethod
    def take(cls, folders: Iterable[Path] = ()) -> Snapshot:
        processes = descendants()
        own = {process.pid for process in processes} | {os.getpid()}
        return cls(
            processes=frozenset(processes),
            mounts=frozenset(_mounts()),
            cgroups=frozenset(_cgroups(own, _containers.seen())),
            descriptors=frozenset(descriptors()),
            files=frozenset(_files(folders)),
        )

    def beyond(self, before: Snapshot) -> Snapshot:
        """What is here and was not there."""
        return Snapshot(
            processes=self.processes - before.processes,
            mounts=self.mounts - before.mounts,
            cgroups=self.cgroups - before.cgroups,
            descriptors=self.descriptors - before.descriptors,
            files=self.files - before.files,
        )

    def describe(self) -> list[str]:
        """One line for each thing; no line when there is nothing."""
        return [
            *(f"process {process.pid}: {process.command}" for process in sorted(self.processes, key=lambda p: p.pid)),
            *(f"mount {line}" for line in sorted(self.mounts)),
            *(f"cgroup {path}" for path in sorted(self.cgroups)),
            *(f"descriptor {line}" for line in sorted(self.descriptors)),
            *(f"file {path}" for path in sorted(self.files)),
        ]


def settle(before: Snapshot, folders: Iterable[Path] = (), *, seconds: float = 2.0) -> list[str]:
    """Wait until nothing is left beyond ``before``, at most this long; returns a line for each thing that is."""
    folders = list(folders)
    deadline = time.monotonic() + seconds
    collected = False
    while True:
        _reap()
        left = Snapshot.take(folders).beyond(before)
        if left.descriptors and not collected:
            gc.collect()  # a forgotten object is a fault of its own, with a ResourceWarning of its own
            collected = True
            continue
        remaining = deadline - time.monotonic()
        if not left.describe() or remaining <= 0:
            return left.describe()
        with Watch(
            processes=[process.pid for process in left.processes],
            paths=[*left.cgroups, *left.files],
            mounts=bool(left.mounts),
        ) as watch:
            _reap()
            if not left.beyond(Snapshot.take(folders)).describe():  # nothing went before the watch was there
                watch.wait(remaining)


_containers = Entries()


def own_store(root: Path) -> None:
    """Count the cgroups of all containers that are made in this store from now on, whoever makes them."""
    folder = root / "containers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _containers.watch(folder)


def sweep(before: Snapshot) -> None:
    """End the processes that are not of ``before``, so that one test's leak is not held against the next."""
    for process in set(descendants()) - before.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        wait_for_exit(process.pid, 2)
    _reap()


def become_subreaper() -> None:
    """Make orphans of the tests our children instead of process 1's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def leave_others_mounts() -> None:
    """Have a mount namespace of our own, shared as a host's is: in it, whoever mounts something is our descendant.

    Only the calling thread moves, and with it the threads and processes that it starts from then on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for propagation in (MS_PRIVATE, MS_SHARED):
        if libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | propagation), None) != 0:
            raise OSError(ctypes.get_errno(), "mount")


def descendants(root: int | None = None) -> list[Process]:
    """All processes below ``root`` (this process unless given), zombies included."""
    parents: dict[int, tuple[int, Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := _process(int(name))):
            parents[int(name)] = found
    family = {os.getpid() if root is None else root}
    while True:  # /proc is not in order of descent
        more = {pid for pid, (parent, _) in parents.items() if parent in family} - family
        if not more:
            break
        family |= more
    return [process for pid, (_, process) in parents.items() if pid in family and pid != (root or os.getpid())]


def _process(pid: int) -> tuple[int, Process] | None:
    """The parent of a process, and the process; None when it has gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    name, _, rest = status.partition("(")[2].rpartition(")")
    fields = rest.split()  # proc_pid_stat(5), from field 3 on
    label = command.replace(b"\0", b" ").decode(errors="replace").strip() or f"[{name}]"
    return int(fields[1]), Process(pid=pid, started=int(fields[19]), command=label)


def _reap() -> None:
    """Collect the zombies that are our children: orphans which ended after having become ours."""
    for process in descendants():
        try:
            os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            continue


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"{fields[4]} (id {fields[0]})" for fields in map(str.split, lines)]


def _cgroups(own: set[int], containers: set[str]) -> list[str]:
    """The cgroups of these containers in every hierarchy, and those of crungo's that hold one of these processes."""
    found = []
    for folder, subfolders, _ in os.walk(CGROUPS):
        for name in subfolders:
            path = os.path.join(folder, name)
            if "crungo" not in (place := os.path.relpath(path, CGROUPS)):
                continue
            if not containers.isdisjoint(_CONTAINER.findall(place)):
                found.append(path)
                continue
            with contextlib.suppress(OSError):  # gone
                if any(int(pid) in own for pid in Path(path, "cgroup.procs").read_text().split()):
                    found.append(path)
    return found


def descriptors(pid: int | str = "self") -> list[str]:
    """The numbers of a process's descriptors, and what they lead to."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(f"{name} -> {os.readlink(f'/proc/{pid}/fd/{name}')}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return found


def _files(folders: Iterable[Path]) -> list[str]:
    found = []
    for folder in folders:
        for parent, subfolders, files in os.walk(folder):
            if LASTING in subfolders:
                subfolders.remove(LASTING)
            standing = STANDING if Path(parent) == folder else frozenset()
            counted = {name for name in {*subfolders, *files} - standing if not name.endswith(DOWNLOADS)}
            found += [os.path.join(parent, name) for name in counted]
    return found
