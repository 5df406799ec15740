"""A hundred runs in a row and fifty at once, by both faces and on both loops, leave the host as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from crungo import Engine
from tests.support.command import Crungo
from tests.support.leaks import Snapshot, settle

BACKENDS = ["asyncio", "trio"]
on_both = pytest.mark.parametrize("anyio_backend", BACKENDS)


def folders(crungo: Crungo) -> list[Path]:
    """The whole store: no run of an image that is there adds anything to it."""
    return [crungo.run, crungo.root]


@contextlib.contextmanager
def as_it_was(crungo: Crungo) -> Iterator[None]:
    before = Snapshot.take(folders(crungo))
    yield
    assert settle(before, folders(crungo)) == []


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@on_both
@pytest.mark.anyio
async def test_a_hundred_in_a_row(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    with as_it_was(crungo):
        async with Engine(root=crungo.root, run=crungo.run) as engine:
            script = "echo out $0; echo err $0 >&2; echo file > /file; exit $(($0 % 7))"
            ours: list[int] = []
            spawners: list[int] = []
            for number in range(100):
                done = await engine.run(busybox_reference, ["sh", "-c", script, str(number)])
                assert done.returncode == number % 7
                assert (done.stdout, done.stderr) == (b"out %d\n" % number, b"err %d\n" % number)
                ours.append(descriptors_of(os.getpid()))
                spawners.append(descriptors_of(engine.spawner.pid))
            # The spawner may still be at work for the last one, with a few that it gives back.
            assert max(ours[-20:]) <= max(ours[:20]) + 1, "descriptors pile up"
            assert max(spawners[-20:]) <= max(spawners[:20]) + 1, "descriptors pile up"


@on_both
@pytest.mark.anyio
async def test_fifty_at_once(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    """All fifty run at the same time: each waits for a word that is only said when all are there."""
    with as_it_was(crungo):
        async with Engine(root=crungo.root, run=crungo.run) as engine:
            running = 0
            everybody = anyio.Event()

            async def one(number: int) -> None:
                nonlocal running
                script = f"echo {number}; read line; exit {number}"
                async with engine.container(busybox_reference, ["sh", "-c", script], stdin=True) as container:
                    assert container.stdout is not None
                    assert container.stdin is not None
                    assert await container.stdout.receive() == b"%d\n" % number
                    running += 1
                    if running == 50:
                        everybody.set()
                    await everybody.wait()
                    await container.stdin.send(b"go\n")
                    assert await container.wait() == number

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(50):
                        group.start_soon(one, number)


@on_both
@pytest.mark.anyio
async def test_fifty_that_are_cancelled(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    """Some are running by then, some are being created, and some wait for their turn."""
    with as_it_was(crungo):
        async with Engine(root=crungo.root, run=crungo.run) as engine:
            started = anyio.Event()
            count = 0

            async def one() -> None:
                nonlocal count
                async with engine.container(busybox_reference, ["sleep", "1000"]) as container:
                    count += 1
                    if count == 10:
                        started.set()
                    await container.wait()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for _ in range(50):
                        group.start_soon(one)
                    await started.wait()
                    group.cancel_scope.cancel()


def test_command_lines_in_a_row(crungo: Crungo, busybox_reference: str) -> None:
    with as_it_was(crungo):
        for number in range(20):
            done = crungo("run", "--name", "again", busybox_reference, "sh", "-c", f"echo {number}", check=0)
            assert done.stdout == f"{number}\n"


def test_command_lines_at_once(crungo: Crungo, busybox_reference: str) -> None:
    """Each with a spawner of its own, that looks for leftovers of others while these are made."""
    with as_it_was(crungo), contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(crungo.start("run", "-i", busybox_reference, "cat", stdin=subprocess.PIPE))
            for _ in range(12)
        ]
        for number, process in enumerate(processes):
            stdout, stderr = process.communicate(b"%d\n" % number, timeout=60)
            assert (stdout, stderr, process.returncode) == (b"%d\n" % number, b"", 0)


def test_a_name_is_for_one_of_many(crungo: Crungo, busybox_reference: str) -> None:
    """Of command lines that want the same name at once, one gets it, and the others say so."""
    with as_it_was(crungo), contextlib.ExitStack() as stack:
        command = ["run", "--name", "wanted", "-i", busybox_reference, "sh", "-c", "echo mine; cat"]
        processes = [stack.enter_context(crungo.start(*command, stdin=subprocess.PIPE)) for _ in range(5)]
        # The losers end by themselves; the winner does when its input does.
        outputs = []
        for process in processes:
            assert process.stdout is not None
            outputs.append(process.stdout.readline())
        assert sorted(outputs) == [b""] * 4 + [b"mine\n"]
        for process, output in zip(processes, outputs, strict=True):
            _, stderr = process.communicate(timeout=20)
            assert process.returncode == (0 if output else 125)
            assert output or stderr.startswith(b'crungo: The container name "wanted" is already in use by container "')
