"""What is measured from inside a process that uses the library: ``inside.py WORK OPTIONS`` prints one JSON value.

It is run by the interpreter of an installation, as a program of its own that imports nothing but crungo, so that each
figure comes from a fresh process of known size.
"""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
from typing import Any

import anyio
from anyio import to_thread

from crungo import Engine


async def rate(options: dict[str, Any]) -> float:
    """Containers per second of ``true``, so many at once."""
    count: int = options["count"]
    at_once: int = options["at_once"]
    async with engine(options) as running:
        await running.run(options["image"], ["true"], **options["fields"])
        serials = iter(range(count))

        async def work() -> None:
            for _ in serials:
                done = await running.run(options["image"], ["true"], **options["fields"])
                assert done.returncode == 0, done

        before = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(at_once):
                group.start_soon(work)
        return count / (time.perf_counter() - before)


async def start(options: dict[str, Any]) -> float:
    """Milliseconds from asking for a container until its program runs, in a process of ``ballast`` megabytes."""
    ballast = touched(options["ballast"] << 20)
    async with engine(options) as running:
        times = []
        for _ in range(options["count"] + 3):
            before = time.perf_counter()
            async with running.container(options["image"], ["true"]) as container:
                times.append(time.perf_counter() - before)
                await container.wait()
    del ballast
    return 1000 * statistics.median(times[3:])


async def execute(options: dict[str, Any]) -> float:
    """Milliseconds of a further process, from asking for it until its result is there and nothing of it is left."""
    times = []
    async with (
        engine(options) as running,
        running.container(options["image"], ["sleep", "1000"], **options["fields"]) as container,
    ):
        for _ in range(options["count"] + 3):
            before = time.perf_counter()
            done = await container.run(["true"])
            times.append(time.perf_counter() - before)
            assert done.returncode == 0, done
        return 1000 * statistics.median(times[3:])


async def pool(options: dict[str, Any]) -> float:
    """Milliseconds from asking a warm pool for a container until its program runs."""
    async with engine(options) as running, running.pool(options["image"], 4) as warm:
        times = []
        for _ in range(options["count"] + 3):
            await anyio.sleep(0.05)  # until the last one's successor is ready
            before = time.perf_counter()
            async with warm.container(["true"]) as container:
                times.append(time.perf_counter() - before)
                await container.wait()
    return 1000 * statistics.median(times[3:])


async def thousand(options: dict[str, Any]) -> dict[str, float]:
    """Many at once: what went wrong, how late the loop was (ms), and memory per container (KB)."""
    count = options["count"]
    late: list[float] = []
    ready = 0
    all_ready, go = anyio.Event(), anyio.Event()
    wrong = 0

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.005
            await anyio.sleep(0.005)
            late.append(1000 * max(0.0, time.perf_counter() - due))

    async def one(running: Engine, number: int) -> None:
        nonlocal ready, wrong
        script = f"echo {number}; cat; exit {number % 200}"
        async with running.container(options["image"], ["sh", "-c", script], stdin=True) as container:
            assert container.stdin is not None
            assert container.stdout is not None
            said = await container.stdout.receive()
            ready += 1
            if ready == count:
                all_ready.set()
            await go.wait()
            await container.stdin.aclose()
            code = await container.wait()
            wrong += (said, code) != (b"%d\n" % number, number % 200)

    async with engine(options) as running:
        await running.run(options["image"], ["true"])
        before = await to_thread.run_sync(memory, running)
        begun = time.perf_counter()
        async with anyio.create_task_group() as ticking:
            ticking.start_soon(tick)
            async with anyio.create_task_group() as group:
                for number in range(count):
                    group.start_soon(one, running, number)
                await all_ready.wait()
                started = time.perf_counter() - begun
                after = await to_thread.run_sync(memory, running)
                go.set()
            everything = time.perf_counter() - begun
            ticking.cancel_scope.cancel()
    late.sort()
    return {
        "wrong": wrong,
        "late": late[int(0.999 * (len(late) - 1))],
        "worst": late[-1],
        "memory": (after - before) / count,
        "started": started,
        "all": everything,
    }


def memory(running: Engine) -> float:
    """KB that this process and the engine's helper take: their private pages, and their share of shared ones."""
    total = 0
    for pid in ("self", running.spawner.pid):
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total


def engine(options: dict[str, Any]) -> Engine:
    return Engine(root=options["root"], run=options["run"])


def touched(size: int) -> mmap.mmap | None:
    """Memory that is really there, in small pages: those are what a fork has to copy the table of."""
    if not size:
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for position in range(0, size, mmap.PAGESIZE):
        memory[position] = 1
    return memory


WORKS = {"rate": rate, "start": start, "execute": execute, "pool": pool, "thousand": thousand}

if __name__ == "__main__":
    print(json.dumps(anyio.run(WORKS[sys.argv[1]], json.loads(sys.argv[2]))))
