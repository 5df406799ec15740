"""Run containers in a row in one process, and see what grows: descriptors, threads, memory, files below the run root.

    python -m tests.soak 10000

The first tenth is warm-up; from then on nothing may grow but for the noise of an allocator. Both processes count: this
one, and the engine's helper.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

import crungo
from tests.support.image import busybox_image, push
from tests.support.leaks import descendants
from tests.support.registry import TOOLS, Registry

__all__ = ["Reading", "growth", "soak"]

SLACK = 4 << 20
"""Bytes that resident memory may vary by."""

IN_PASSING = 3
"""Descriptors, threads or files of what is just being closed; of ten runs that each leave one behind, ten stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look: of this process and of the helper, and how many entries the run and container folders have."""

    descriptors: int
    threads: int
    memory: int
    helper_descriptors: int
    helper_memory: int
    children: int
    entries: int

    @classmethod
    def take(cls, api: crungo.Engine) -> Reading:
        helper = api.spawner.pid
        folders = [api.roots.run, f"{api.roots.root}/containers", f"{api.roots.root}/names"]
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            memory=_resident("self"),
            helper_descriptors=len(os.listdir(f"/proc/{helper}/fd")),
            helper_memory=_resident(str(helper)),
            children=len(descendants()),
            entries=sum(len(folders) + len(files) for top in folders for _, folders, files in os.walk(top)),
        )


def growth(first: Reading, last: Reading) -> list[str]:
    """What has grown, a line each."""
    found = []
    for name in Reading.__slots__:
        before, after = getattr(first, name), getattr(last, name)
        if after > before + (SLACK if "memory" in name else IN_PASSING):
            found.append(f"{name}: {before}, then {after}")
    return found


async def soak(
    api: crungo.Engine, image: str, runs: int, *, at_once: int = 4, told: Callable[[int, Reading], None] | None = None
) -> list[str]:
    """Make ``runs`` runs, each with output and every tenth with a further process; returns what has grown."""

    async def one(number: int) -> None:
        if number % 10:
            done = await api.run(image, ["echo", str(number)])
        else:
            async with api.container(image, ["sleep", "1000"]) as container:
                done = await container.run(["echo", str(number)])
        assert done.stdout == b"%d\n" % number, done

    async def batch(start: int, end: int) -> Reading:
        pending = iter(range(start, end))

        async def worker() -> None:
            for number in pending:
                await one(number)

        async with anyio.create_task_group() as group:
            for _ in range(at_once):
                group.start_soon(worker)
        return Reading.take(api)

    tenth = max(1, runs // 10)
    first = last = await batch(0, tenth)
    for start in range(tenth, runs, tenth):
        last = await batch(start, min(runs, start + tenth))
        if told is not None:
            told(start + tenth, last)
    return growth(first, last)


def _resident(process: str) -> int:
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def main(runs: int, folder: Path, image: str) -> list[str]:
    started = time.monotonic()

    def told(number: int, reading: Reading) -> None:
        rate = number / (time.monotonic() - started)
        print(f"{number:6} runs, {rate:5.1f}/s  {reading}", flush=True)

    async with crungo.Engine(root=folder / "root", run=folder / "run") as api:
        return await soak(api, image, runs, told=told)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=int, nargs="?", default=10_000)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crungo-soak-") as name, Registry(Path(name) / "registry") as registry:
        reference = push(busybox_image((TOOLS / "busybox").resolve()), registry.address, "library/busybox")
        grown = anyio.run(main, arguments.runs, Path(name), reference, backend=arguments.backend)
    raise SystemExit("it grows:\n  " + "\n  ".join(grown) if grown else 0)
