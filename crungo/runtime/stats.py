"""What a container uses, read from the files of its cgroup, of version 1 or 2 (cgroups(7), the kernel's cgroup-v2.rst).

Invariant: reading needs no help of the spawner and changes nothing; a container that is gone has no figures.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from crungo.openfiles import LIMITS
from crungo.records import Record
from crungo.runtime.cgroups import ROOT, path_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Stats", "read_stats"]

_UNLIMITED = 1 << 62  # v1 writes "no limit" as the largest multiple of a page


class Stats(Record):
    """What a container and all its processes use. 0 where the host does not count it.

    ``time`` is in seconds since the epoch. ``cpu``, ``cpu_user`` and ``cpu_system`` are nanoseconds since the start;
    ``memory`` is bytes now, the page cache included, ``memory_inactive`` the part of it that the kernel could take back
    at once, ``memory_peak`` the most there was; ``pids`` processes and threads now; ``read`` and ``written`` bytes from
    and to block devices since the start. Limits are None where there is none.
    """

    time: float
    cpu: int
    cpu_user: int
    cpu_system: int
    memory: int
    memory_inactive: int
    memory_peak: int
    memory_limit: int | None
    pids: int
    pids_limit: int | None
    read: int
    written: int


def read_stats(identifier: str, root: str = ROOT) -> Stats | None:
    """A container's figures now, from below the mount point ``root``; None when it is gone. For a worker thread."""
    name = path_of(identifier)
    unified = f"{root}{name}"
    found = _version_2(unified) if os.path.isdir(unified) else _version_1(root, name)
    # A cgroup that goes while it is read gives half of the figures: believe only what was there to the end.
    return found if os.path.isdir(unified) or os.path.isdir(f"{root}/memory{name}") else None


def _version_2(directory: str) -> Stats:
    cpu = _table(f"{directory}/cpu.stat")
    memory = _table(f"{directory}/memory.stat")
    read = written = 0
    for line in _lines(f"{directory}/io.stat"):  # 8:0 rbytes=1 wbytes=2 rios=3 …
        words = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
        read += _number(words.get("rbytes"))
        written += _number(words.get("wbytes"))
    return Stats(
        time=time.time(),
        cpu=cpu.get("usage_usec", 0) * 1000,
        cpu_user=cpu.get("user_usec", 0) * 1000,
        cpu_system=cpu.get("system_usec", 0) * 1000,
        memory=_value(f"{directory}/memory.current"),
        memory_inactive=memory.get("inactive_file", 0),
        memory_peak=_value(f"{directory}/memory.peak"),
        memory_limit=_limit(f"{directory}/memory.max"),
        pids=_value(f"{directory}/pids.current"),
        pids_limit=_limit(f"{directory}/pids.max"),
        read=read,
        written=written,
    )


def _version_1(root: str, name: str) -> Stats:
    cpu, memory, pids = f"{root}/cpuacct{name}", f"{root}/memory{name}", f"{root}/pids{name}"
    done = {"Read": 0, "Write": 0}
    for line in _lines(f"{root}/blkio{name}/blkio.throttle.io_service_bytes_recursive"):  # 8:0 Read 4096
        words = line.split()
        if len(words) == 3 and words[1] in done:
            done[words[1]] += _number(words[2])
    return Stats(
        time=time.time(),
        cpu=_value(f"{cpu}/cpuacct.usage"),
        cpu_user=_value(f"{cpu}/cpuacct.usage_user"),
        cpu_system=_value(f"{cpu}/cpuacct.usage_sys"),
        memory=_value(f"{memory}/memory.usage_in_bytes"),
        memory_inactive=_table(f"{memory}/memory.stat").get("total_inactive_file", 0),
        memory_peak=_value(f"{memory}/memory.max_usage_in_bytes"),
        memory_limit=_limit(f"{memory}/memory.limit_in_bytes"),
        pids=_value(f"{pids}/pids.current"),
        pids_limit=_limit(f"{pids}/pids.max"),
        read=done["Read"],
        written=done["Write"],
    )


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError as problem:
        if problem.errno in LIMITS:
            raise
        return []  # not counted here, or the container has just gone


def _table(path: str) -> Mapping[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: _number(pair[1]) for pair in pairs if len(pair) == 2}


def _value(path: str) -> int:
    return _number(next(iter(_lines(path)), None))


def _limit(path: str) -> int | None:
    text = next(iter(_lines(path)), "max")
    value = _number(text) if text.isdigit() else _UNLIMITED
    return value if value < _UNLIMITED else None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
