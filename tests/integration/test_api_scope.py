"""Scope is lifetime: every way out of a block, and of the process, ends the container with all that it has started.

Each way is taken with a container whose program has forked twice, and in which a further process has, too. Where the
block is left by a living process, nothing is left at the very moment in which that is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import crungo
from crungo.errors import HostError
from crungo.image.check import check
from tests.integration.conftest import PushImage
from tests.support.api import engine, remains
from tests.support.command import Crungo
from tests.support.image import Layer
from tests.support.leaks import descendants
from tests.support.openfiles import descriptors_left

TREE = "(setsid sh -c 'sleep 2001 & exec sleep 2002' &) ; "
"""Two processes that have nothing to do with their parent any more."""

QUIET = " >/dev/null 2>&1 </dev/null"


@asynccontextmanager
async def full(api: crungo.Engine, image: str) -> AsyncIterator[crungo.Container]:
    """A container with a tree of processes, and with one of a further process."""
    command = ["sh", "-c", TREE.replace("&)", f"{QUIET} &)") + "echo ready; exec sleep 2003"]
    async with api.container(image, command) as container:
        assert container.stdout is not None
        assert await container.stdout.receive() == b"ready\n"
        async with container.exec(
            ["sh", "-c", TREE.replace("&)", f"{QUIET} &)") + "echo ready; exec sleep 2004"]
        ) as more:
            assert more.stdout is not None
            assert await more.stdout.receive() == b"ready\n"
            yield container


class Stop(Exception):
    """What the tests leave blocks with."""


async def leave(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    async with full(api, image) as container:
        told(container.id)


async def exception(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    with pytest.raises(Stop):  # noqa: PT012
        async with full(api, image) as container:
            told(container.id)
            raise Stop


async def cancelled_from_outside(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    async with anyio.create_task_group() as group:

        async def inside(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with full(api, image) as container:
                told(container.id)
                task_status.started()
                await anyio.sleep_forever()

        await group.start(inside)
        group.cancel_scope.cancel()


async def cancelled_while_waiting(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    with anyio.CancelScope() as scope:
        async with full(api, image) as container:
            told(container.id)
            scope.cancel()
            await container.wait()
    assert scope.cancelled_caught


async def deadline(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(1.5):  # noqa: PT012
        async with full(api, image) as container:
            told(container.id)
            await anyio.sleep_forever()


async def sibling_fails(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    async def failing() -> None:
        raise Stop

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with anyio.create_task_group() as group, full(api, image) as container:
            told(container.id)
            group.start_soon(failing)
            await anyio.sleep_forever()


async def paused(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    command = ["sh", "-c", TREE + "exec sleep 2003"]
    async with api.container(image, command) as container:
        told(container.id)
        await container.pause()


async def killed_by_itself(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    async with full(api, image) as container:
        told(container.id)
        container.kill()
        assert await container.wait() == 137


async def engine_left_first(api: crungo.Engine, image: str, told: Callable[[str], None]) -> None:
    """A container that its engine ends: it was created, and never closed."""
    container = await api.create(crungo.configure(image, ["sleep", "2003"]))
    told(container.id)
    await api.__aexit__(None, None, None)
    assert not await anyio.to_thread.run_sync(lambda: alive(container.pid))
    await container.aclose()


WAYS_OUT = [
    leave, exception, cancelled_from_outside, cancelled_while_waiting, deadline, sibling_fails, paused,
    killed_by_itself, engine_left_first,
]  # fmt: skip


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS_OUT, ids=lambda way: way.__name__)
async def test_a_way_out(
    crungo: Crungo,
    busybox_reference: str,
    way: Callable[[crungo.Engine, str, Callable[[str], None]], object],
) -> None:
    seen: list[str] = []
    async with engine(crungo) as api:
        await api.run(busybox_reference, ["true"])  # until all is started that stays
        before = {process.pid for process in descendants()}
        await way(api, busybox_reference, seen.append)  # type: ignore[misc]
        # At once: the block does not return before.
        assert seen
        assert remains(crungo, seen[0]) == []
        assert {process.pid for process in descendants()} <= before


PROGRAM = """
    import asyncio, gc, os, signal, sys
    import anyio
    import crungo
    from tests.integration.test_api_scope import full

    backend, root, run, image, way = sys.argv[1:]

    async def hold(ready):
        async with crungo.Engine(root=root, run=run) as api, full(api, image) as container:
            print(container.id, flush=True)
            ready()
            await anyio.sleep_forever()

    def leave():
        if way == "os._exit":
            os._exit(7)
        if way == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        if way == "KeyboardInterrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if way == "sys.exit":
            sys.exit(8)
        if way == "abort":
            os.abort()

    if way == "loop closed":
        loop = asyncio.new_event_loop()
        task = loop.create_task(hold(lambda: loop.call_soon(loop.stop)))
        loop.set_exception_handler(lambda *ignored: None)
        loop.run_forever()
        loop.close()
        del loop, task
        gc.collect()
        print("closed", flush=True)
        sys.stdin.read()
        os._exit(0)
    anyio.run(hold, leave, backend=backend)
"""


WAYS_TO_END = {
    "os._exit": 7, "SIGKILL": -signal.SIGKILL, "SIGTERM": -signal.SIGTERM, "KeyboardInterrupt": -signal.SIGINT,
    "sys.exit": 8, "abort": -signal.SIGABRT,
}  # fmt: skip


def start(command: Crungo, image: str, backend: str, way: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), backend, str(command.root), str(command.run), image, way],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("way", WAYS_TO_END)
def test_a_way_to_end_the_process(crungo: Crungo, busybox_reference: str, backend: str, way: str) -> None:
    with start(crungo, busybox_reference, backend, way) as process:
        assert process.stdout is not None
        identifier = process.stdout.readline().decode().strip()
        assert len(identifier) == 64, process.stderr.read() if process.stderr else ""
        assert process.wait(30) == WAYS_TO_END[way]
    if way in ("KeyboardInterrupt", "sys.exit"):
        assert remains(crungo, identifier) == []  # its block was left before it ended
    # Else the spawner is still at it: that nothing is left in two seconds is checked after every test.


def test_a_loop_that_is_closed_under_it(crungo: Crungo, busybox_reference: str) -> None:
    with start(crungo, busybox_reference, "asyncio", "loop closed") as process:
        assert process.stdout is not None
        identifier = process.stdout.readline().decode().strip()
        assert len(identifier) == 64
        assert process.stdout.readline() == b"closed\n"
        await_gone(crungo, identifier)
        process.communicate(timeout=10)


def await_gone(command: Crungo, identifier: str) -> None:
    """The process still lives; its container must not, in two seconds."""
    from tests.support.events import Watch

    place = command.root / "containers" / identifier
    with Watch(paths=[str(place)]) as watch:
        if place.exists():
            watch.wait(2.0)
    assert remains(command, identifier) == []


@pytest.mark.anyio
async def test_cancelled_at_many_moments_of_a_run(crungo: Crungo, busybox_reference: str) -> None:
    """From before the request to after the end: a run takes some twenty milliseconds."""
    async with engine(crungo) as api:
        await api.run(busybox_reference, ["true"])
        before = {process.pid for process in descendants()}
        for number in range(60):
            with anyio.move_on_after(number * 0.0007):
                await api.run(busybox_reference, ["sh", "-c", TREE.replace("&)", f"{QUIET} &)") + "exec sleep 0.01"])
            assert os.listdir(crungo.root / "containers") == []
            assert os.listdir(crungo.root / "names") == []
            assert os.listdir(crungo.run / "containers") in ([], [".cache"])
        assert {process.pid for process in descendants()} <= before
        assert (await api.run(busybox_reference, ["echo", "still works"])).stdout == b"still works\n"


@pytest.mark.anyio
async def test_cancelled_at_many_moments_of_an_exec(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api, api.container(busybox_reference, ["sleep", "2003"]) as container:
        for number in range(40):
            with anyio.move_on_after(number * 0.001):
                await container.run(["sh", "-c", TREE.replace("&)", f"{QUIET} &)") + "exec sleep 0.01"])
        left = await container.run(["sh", "-c", "ps -o args | grep -c '[s]leep 200[12]'"])
        assert left.stdout == b"0\n"
        assert container.returncode is None


@pytest.mark.anyio
async def test_cancelled_at_many_moments_of_a_pull(
    fresh_crungo: Crungo, push_image: PushImage, anyio_backend_name: str
) -> None:
    """At every event, then at seeded delays; each continues what the last has left, and the end is right."""
    layers = [Layer().file(f"big{number}", os.urandom(2_000_000)) for number in range(3)]
    reference = push_image(f"library/cancelled-{anyio_backend_name}", *layers)
    async with engine(fresh_crungo) as api:
        for stop_at in range(1, 14):
            with anyio.CancelScope() as scope:
                count = 0

                def stop(event: object, scope: anyio.CancelScope = scope, stop_at: int = stop_at) -> None:
                    nonlocal count
                    count += 1
                    if count >= stop_at:
                        scope.cancel()

                await api.pull(reference, progress=stop)
        for number in range(12):
            with anyio.move_on_after(number * 0.01):
                await api.pull(reference)
        image = await api.pull(reference)
        assert (await api.run(image.id, ["sh", "-c", "cat /big*"])).stdout is not None
        assert await check(api.store) == []


def test_no_engine_is_needed_to_find_what_a_dead_one_has_left(crungo: Crungo, busybox_reference: str) -> None:
    """The spawner, too, is killed: the next one sweeps."""
    with start(crungo, busybox_reference, "asyncio", "nothing") as process:
        assert process.stdout is not None
        identifier = process.stdout.readline().decode().strip()
        spawners = [found.pid for found in descendants(process.pid) if "isolation" in found.command]
        for pid in [*spawners, process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
    assert remains(crungo, identifier)
    crungo("run", busybox_reference, "true", check=0)
    await_gone(crungo, identifier)


async def start_and_end(api: crungo.Engine, container: crungo.Container, image: str) -> None:
    async with api.container(image, ["true"], stdin=True):
        pass


async def execute_and_end(api: crungo.Engine, container: crungo.Container, image: str) -> None:
    async with container.exec(["true"], stdin=True):
        pass


@pytest.mark.anyio
async def test_too_few_descriptors_are_one_clear_error(crungo: Crungo, busybox_reference: str) -> None:
    """Whichever descriptor is the one too many: nothing half-made stays, and with enough of them all works."""

    async with engine(crungo) as api, api.container(busybox_reference, ["sleep", "1000"]) as container:
        for attempt in (start_and_end, execute_and_end):
            await attempt(api, container, busybox_reference)  # threads, modules
            children = descendants()
            before = os.listdir("/proc/self/fd")
            refused = 0
            for count in range(40):
                problem = None
                with descriptors_left(count):
                    try:
                        await attempt(api, container, busybox_reference)
                    except HostError as error:
                        problem = error
                assert len(os.listdir("/proc/self/fd")) == len(before), count
                if problem is None:
                    break
                refused += "as many files open as it may" in problem.message
            assert refused == count > 6
            assert descendants() == children


@pytest.mark.anyio
async def test_an_engine_that_has_no_descriptor_left(crungo: Crungo) -> None:
    children, before = descendants(), os.listdir("/proc/self/fd")
    for count in range(2):
        with descriptors_left(count), pytest.raises(HostError, match="as many files open as it may"):
            await engine(crungo).__aenter__()
        assert (descendants(), len(os.listdir("/proc/self/fd"))) == (children, len(before))
