"""The control groups of containers: finding, killing and removing them, on cgroup v1, v2 and both at once.

Every container has one, ``crungo-<id>``, at the root of each hierarchy: no common parent directory has to be made,
shared and removed. libcrun makes them; they are removed here, because that must work after a crash at any moment, when
libcrun has no record of the container. See cgroups(7).
"""

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "claim_controllers",
    "directories",
    "hierarchies",
    "kill",
    "path_of",
    "remove",
    "remove_empty",
    "tree_of_executions",
]

ROOT = "/sys/fs/cgroup"
SIGKILL = 9
PATIENCE = 2.0
"""Seconds to wait for killed processes to leave: v1 has no event for it."""

CONTROLLERS = frozenset(("cpu", "cpuset", "io", "memory", "pids"))
ATTEMPTS = 10
"""Processes may be forked while others move."""


def path_of(identifier: str) -> str:
    """The container's cgroup, as the OCI specification's ``linux.cgroupsPath``."""
    return f"/crungo-{identifier}"


def directories(identifier: str, child: str = "") -> list[str]:
    """The directories of a container's cgroup: one on v2, one in each hierarchy on v1; or of ``child`` below it."""
    candidates = [root + path_of(identifier) + child for root in hierarchies()]
    return [path for path in candidates if os.path.isdir(path)]


def claim_controllers(root: str = ROOT) -> None:
    """Make the controllers of a v2 tree available to containers where what looks like its root is not.

    Within a container, the root of the namespace of cgroups is an ordinary cgroup: as long as it has processes of its
    own, it cannot give controllers to those below it (cgroups(7), "no internal processes"). They move to ``init``, one
    below, where docker's and others' images for containers within containers put them. Where that is not allowed,
    all stays as it was, and libcrun says which limit it could not set.
    """
    if not os.path.exists(f"{root}/cgroup.type"):  # only the true root has none; nor has a tree of v1
        return
    try:
        wanted = _words(f"{root}/cgroup.controllers") & CONTROLLERS - _words(f"{root}/cgroup.subtree_control")
        text = " ".join(f"+{name}" for name in sorted(wanted))
        for _ in range(ATTEMPTS if wanted else 0):
            try:
                _write(f"{root}/cgroup.subtree_control", text)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                os.makedirs(f"{root}/init", 0o755, exist_ok=True)
                _move_processes(root, f"{root}/init")
            else:
                return
    except OSError:
        return


def _move_processes(source: str, target: str) -> None:
    for pid in _processes(source):
        if pid:  # 0 stands for one that cannot be named here: it is of a pid namespace further out
            try:
                _write(f"{target}/cgroup.procs", str(pid))
            except ProcessLookupError:
                pass


def kill(identifier: str, child: str = "") -> None:
    """Send SIGKILL to every process in the container's cgroup and in the ones below it."""
    for top in directories(identifier, child):
        try:
            _write(f"{top}/cgroup.kill", "1")  # at one stroke, so that no fork is missed
        except OSError:  # v1, a kernel older than 5.14, or nothing to kill any more
            for directory in _below(top):
                for pid in _processes(directory):
                    try:
                        os.kill(pid, SIGKILL)
                    except ProcessLookupError:
                        pass


def hierarchies() -> list[str]:
    """Where cgroups can be: the root of the v2 tree, or those of the v1 trees."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return [ROOT]  # the directories below it are cgroups of others
    try:
        return [entry.path for entry in os.scandir(ROOT) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def tree_of_executions(roots: list[str]) -> tuple[str, bool]:
    """Which of ``hierarchies()`` has the cgroups of further processes, and whether it is that of v2.

    On v1 any one tree tells what such a process has started, and the limits are the container's. Best is one where a
    cgroup without limits means nothing; never the freezer's, which a frozen process leaves before it dies
    (``freezer.py``), or cpuset's, where a new cgroup takes no process in (cpuset(7)).
    """
    if roots == [ROOT]:
        return ROOT, True
    ranks = {"pids": 0, "systemd": 0, "freezer": 2, "cpuset": 2}
    return min(roots, key=lambda root: ranks.get(os.path.basename(root), 1)), False


def remove_empty(identifier: str, roots: list[str], child: str = "") -> None:
    """Remove the container's cgroup, or a child of it, from ``hierarchies()``; OSError when something is in it."""
    name = path_of(identifier) + child
    for root in roots:
        try:
            os.rmdir(root + name)
        except FileNotFoundError:
            pass


def remove(identifier: str, child: str = "") -> None:
    """Remove the container's cgroup, or a child of it, with all below it, killing what is still inside."""
    problem = None
    for top in directories(identifier, child):
        for directory in _below(top):
            try:
                _remove_one(directory, identifier, child)
            except OSError as error:
                problem = error  # the other hierarchies shall be clean all the same
    if problem is not None:
        raise problem


def _remove_one(directory: str, identifier: str, child: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            kill(identifier, child)
            time.sleep(0.002)
        else:
            return


def _below(top: str) -> Iterator[str]:
    """A cgroup's descendants and itself, the deepest first."""
    try:
        with os.scandir(top) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for child in children:
        yield from _below(child)
    yield top


def _words(path: str) -> frozenset[str]:
    with open(path, encoding="ascii") as file:
        return frozenset(file.read().split())


def _write(path: str, text: str) -> None:
    """Write to a control file; one that is missing is never made."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _processes(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs", "rb") as file:
            return [int(line) for line in file]
    except OSError:
        return []
