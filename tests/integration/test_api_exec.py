"""Further processes of a container: what they get, how they end, and what holds them up; on asyncio and trio."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from crungo.errors import CommandNotFound, ContainerError
from tests.support.api import engine, line, remains
from tests.support.command import Crungo

pytestmark = pytest.mark.anyio


def child_of(pid: int) -> list[Path]:
    return [Path(f"/proc/{child}") for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


DAEMON = "(setsid sh -c 'sleep 1001 & echo $! >{place}; exec sleep 1002' >/dev/null 2>&1 </dev/null &) ; sleep 0.1"


async def test_exec_ends_with_its_block_and_takes_only_its_own(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sh", "-c", "sleep 1003 & echo ready; exec sleep 1004"]) as container,
    ):
        await line(container)
        with pytest.raises(TimeoutError):
            await container.run(["sh", "-c", DAEMON.format(place="/tmp/pid") + "; exec sleep 1005"], timeout=0.6)
        left = await container.run(["ps", "-o", "args"])
        assert left.stdout is not None
        # What was killed stays a zombie where the first process does not wait for its orphans: [sleep].
        sleeping = sorted(row.strip() for row in left.stdout.splitlines() if b"sleep " in row)
        assert sleeping == [b"sleep 1003", b"sleep 1004"]
        async with container.exec(
            ["sh", "-c", "echo $A; id -u; exec sleep 1006"], env={"A": "b"}, user="app"
        ) as process:
            assert await line(process) == b"b"
            assert await line(process) == b"1000"
            assert alive(process.pid)
        assert not alive(process.pid)
        assert container.returncode is None
        with pytest.raises(CommandNotFound):
            await container.run(["nothing-like-it"])
        with pytest.raises(ContainerError, match='working directory "/nowhere": No such file'):
            await container.run(["true"], workdir="/nowhere")


async def test_a_further_process_of_a_paused_container_ends(crungo: Crungo, busybox_reference: str) -> None:
    """With all that it has started, before the container goes on."""
    counting = "i=0; while :; do i=$((i+1)); echo $i; read x; done"
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sh", "-c", counting], stdin=True) as container,
    ):
        assert container.stdin is not None
        assert await line(container) == b"1"
        async with container.exec(["sh", "-c", "sleep 2005 & echo $!; wait"]) as process:
            await line(process)
            inside = [Path(f"/proc/{process.pid}"), *child_of(process.pid)]
            await container.pause()
            with anyio.fail_after(10):
                await process.aclose()
            # Whom it leaves an orphan, only the container's first process could reap, which stands still.
            assert [path for path in inside if path.exists() and "State:\tZ" not in (path / "status").read_text()] == []
        await container.stdin.send(b"\n")
        with anyio.move_on_after(0.3) as scope:
            await line(container)
        assert scope.cancelled_caught, "the container went on"
        await container.resume()
        assert await line(container) == b"2"


async def test_the_containers_limits_hold_for_it_alone(crungo: Crungo, busybox_reference: str) -> None:
    """And not for what starts it."""
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sleep", "1000"], ulimits=["fsize=0", "nofile=16"]) as container,
    ):
        for tty in (False, True):
            done = await container.run(["sh", "-c", "ulimit -f; ulimit -n"], tty=tty)
            assert (done.stdout or b"").split() == [b"0", b"16"]


STOP_OTHERS = """
while :; do
  for process in /proc/[0-9]*; do
    process=${process#/proc/}
    [ $process -eq 1 ] || { kill -STOP $process && echo stopped && read forever; }
  done
done
"""


async def test_exec_ends_although_the_container_stops_it_early(crungo: Crungo, busybox_reference: str) -> None:
    """Between its fork and its exec it is not a command yet, but root of the container may send it signals already."""
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sh", "-c", STOP_OTHERS], stdin=True) as container,
    ):
        async with anyio.create_task_group() as watch:

            async def give_up() -> None:
                await anyio.sleep(10)
                os.kill(container.pid, signal.SIGKILL)  # the test shall fail, and not hang

            watch.start_soon(give_up)
            async with anyio.create_task_group() as group:
                group.start_soon(container.run, ["sleep", "1000"])
                assert await line(container) == b"stopped"
                group.cancel_scope.cancel()
            watch.cancel_scope.cancel()
        assert container.returncode is None
    assert remains(crungo, container.id) == []


TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None)
assert libc.ptrace(0x4206, int(sys.stdin.readline()), 0, 0) == 0
print("traced", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("let_go", [False, True])
async def test_a_traced_process_keeps_nobody(crungo: Crungo, busybox_reference: str, let_go: bool) -> None:
    """The dead that a process of the container traces are not the spawner's to reap, and must not hold it up."""
    tracer = ["chroot", "/host", sys.executable, "-I", "-c", TRACER]
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sleep", "1000"], volumes=["/:/host:ro"]) as container,
        container.exec(tracer, stdin=True) as tracing,
    ):
        with anyio.fail_after(20):
            async with container.exec(["sh", "-c", "echo $$; read x; exit 3"], stdin=True) as traced:
                assert traced.stdin is not None
                assert tracing.stdin is not None
                await tracing.stdin.send(await line(traced) + b"\n")
                assert await line(tracing) == b"traced"
                await traced.stdin.aclose()
                with anyio.move_on_after(0.5) as scope:
                    await traced.wait()
                assert scope.cancelled_caught, "it was reaped under its tracer"
                if let_go:
                    tracing.kill()
                    assert await traced.wait() == 3
