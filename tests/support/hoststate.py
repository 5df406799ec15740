"""What a process is for its surroundings, all that a library could change of it: asked before and after, and compared.

Run as ``python -m tests.support.hoststate BACKEND ROOT RUN IMAGE RUNS`` it is the process: it runs containers and
prints how it was at four moments, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import anyio

from crungo import Engine

__all__ = ["WORKERS", "state"]

WORKERS = ("AnyIO worker thread", "Trio thread", "Trio worker thread")
"""Threads of anyio's and trio's pools: they wait for more work, and end after a time without any."""

_PRCTL = {"dumpable": 3, "keepcaps": 7, "securebits": 27, "timerslack": 30, "subreaper": 37, "thp": 42}
_STATUS = ("SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_STATUS_IDS = ("Uid", "Gid", "Groups", "Umask", "Cpus_allowed_list")
_libc = ctypes.CDLL(None, use_errno=True)


def state() -> dict[str, Any]:
    """This process now, as plain values."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        **{name: status[name].strip() for name in (*_STATUS, *_STATUS_IDS)},
        **{name: _prctl(option) for name, option in _PRCTL.items()},
        "cwd": os.getcwd(),
        "root": os.readlink("/proc/self/root"),
        "handlers": {number: repr(signal.getsignal(number)) for number in range(1, signal.NSIG)},
        "wakeup": signal.set_wakeup_fd(-1) if threading.current_thread() is threading.main_thread() else None,
        "timers": [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL)],
        "descriptors": sorted(_descriptors()),
        "threads": sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith(WORKERS)),
        "session": [os.getsid(0), os.getpgrp(), os.getppid()],
        "limits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"
        },
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "namespaces": sorted(os.readlink(entry) for entry in Path("/proc/self/ns").iterdir()),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "environ": dict(os.environ),
        "arguments": sys.argv,
        "children": [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
    }


def _prctl(option: int) -> int:
    if option == _PRCTL["subreaper"]:  # the one that answers through a pointer
        answer = ctypes.c_int(-1)
        _libc.prctl(option, ctypes.byref(answer), 0, 0, 0)
        return answer.value
    result: int = _libc.prctl(option, 0, 0, 0, 0)
    return result


def _descriptors() -> list[str]:
    """Descriptors with what they lead to, but for the numbers of what the kernel counts up."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        found.append(f"{name} {target.split('[')[0]} {os.get_inheritable(int(name))} {os.get_blocking(int(name))}")
    return found


async def _runs(root: str, run: str, image: str, count: int) -> list[dict[str, Any]]:
    moments = []
    async with Engine(root=root, run=run) as engine:
        for number in range(count):
            done = await engine.run(image, ["sh", "-c", f"echo {number}; exit {number % 5}"], input=b"x")
            assert (done.returncode, done.stdout) == (number % 5, b"%d\n" % number)
            if number == 0:
                moments.append(_in_loop())
        moments.append(_in_loop())
    return moments


def _in_loop() -> dict[str, Any]:
    found = state()
    signal.set_wakeup_fd(found["wakeup"], warn_on_full_buffer=False)  # asking for it has taken it away
    return found


def main() -> None:
    """Run the containers and print the moments: before, after the first in the loop, after the last, and afterwards."""
    backend, root, run, image, count = sys.argv[1:]
    # What a loop makes once stays, and so does libc's own handler, which comes with the first thread (nptl(7)).
    anyio.run(anyio.to_thread.run_sync, os.getpid, backend=backend)
    os.umask(0o027)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    before = state()
    inside = anyio.run(_runs, root, run, image, int(count), backend=backend)
    print(json.dumps([before, *inside, state()]))


if __name__ == "__main__":
    main()
