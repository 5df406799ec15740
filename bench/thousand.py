"""``make bench-thousand``: a thousand containers at once, from one process.

Each says its number, waits until its standard input is closed, and exits with a code of its own. Meanwhile a task on
the same loop ticks every five milliseconds and notes how late it is.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from bench.common import Crungo, environment, install, isolate, workspace
from bench.peers import run as run_command
from bench.report import Row, publish
from tests.support.image import busybox_image, push
from tests.support.leaks import Snapshot, become_subreaper, settle
from tests.support.registry import TOOLS, Registry

TITLE = "A thousand containers at once"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-thousand")
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    isolate()
    become_subreaper()
    with workspace() as folder, Registry(folder / "registry") as registry, ExitStack():
        image = push(busybox_image((TOOLS / "busybox").resolve()), registry.address, "bench/busybox")
        crungo = Crungo(python=install(folder), folder=folder / "crungo")
        run_command(crungo.command("run", image, "true"), environment())
        folders = [crungo.folder / "run", crungo.folder / "root" / "containers", crungo.folder / "root" / "names"]
        before = Snapshot.take(folders)
        found = crungo.inside("thousand", image=image, count=options.count)
        left = settle(before, folders)
    for problem in left:
        print(f"  left behind: {problem}")
    wrong = found["wrong"] + len(left)
    rows = [
        Row(
            work="wrong outputs and exit codes, and things left behind",
            unit="",
            crungo=wrong,
            reference=1,
            against="1",
            goal=0,
        ),
        Row(
            work=f"lateness of a task that ticks every 5 ms, 99.9th percentile (worst {found['worst']:.0f} ms)",
            unit="ms",
            crungo=found["late"],
            reference=50,
            against="50 ms",
            goal=1.0,
        ),
        Row(
            work="memory of crungo's processes per container (private and its share of what is shared)",
            unit="KB",
            crungo=found["memory"],
            reference=100,
            against="100 KB",
            goal=1.0,
        ),
        Row(work=f"until all {options.count} run", unit="s", crungo=found["started"]),
        Row(work="from the first request until the last is gone", unit="s", crungo=found["all"]),
    ]
    publish("thousand", TITLE, rows)


if __name__ == "__main__":
    main()
