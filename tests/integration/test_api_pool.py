"""Warm pools: containers that wait for nothing but their command."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from crungo import ContainerConfig, Engine
from crungo.errors import CommandNotExecutable, CommandNotFound, ContainerError, NotRunning, UsageError
from tests.support.events import wait_for_exit
from tests.support.leaks import descendants

if TYPE_CHECKING:
    from tests.support.command import Crungo

pytestmark = pytest.mark.anyio


async def test_a_command_finds_its_arguments_environment_and_input(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 2, env={"BASE": "1"}, workdir="/tmp") as pool,
    ):
        result = await pool.run(
            ["sh", "-c", 'echo "$BASE $EXTRA $HOME $0" "$@"; pwd; cat', "a b", "", "c\n"], input=b"in"
        )
        assert result.stdout == b"1  /root a b  c\n\n/tmp\nin"
        result = await pool.run(
            ["sh", "-c", 'echo "$BASE $EXTRA"; pwd; cat'], env={"BASE": "2", "EXTRA": "x=y"}, workdir="/"
        )
        assert (result.returncode, result.stdout) == (0, b"2 x=y\n/\n")


async def test_each_container_is_used_once(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 1) as pool,
    ):
        for _ in range(3):
            result = await pool.run(["sh", "-c", "ls /tmp; touch /tmp/used; hostname"])
            assert len(result.stdout or b"") == 13, "a file of the one before, or the same host name"


async def test_more_are_taken_than_are_ready(crungo: Crungo, busybox_reference: str) -> None:
    codes: list[int] = []

    async def one(code: int) -> None:
        codes.append((await pool.run(["sh", "-c", f"exit {code}"])).returncode)

    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 2) as pool,
        anyio.create_task_group() as group,
    ):
        for code in range(12):
            group.start_soon(one, code)
    assert sorted(codes) == list(range(12))


async def test_exit_codes_and_failures_are_those_of_a_run(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 1) as pool,
    ):
        assert (await pool.run(["sh", "-c", "kill -9 $$ & wait; exit 3"])).returncode == 3
        with pytest.raises(CommandNotFound, match='exec "nope": executable file not found in \\$PATH'):
            await pool.run(["nope"])
        with pytest.raises(CommandNotFound, match='exec "/nope": no such file or directory'):
            await pool.run(["/nope"])
        with pytest.raises(ContainerError, match='working directory "/nope": No such file or directory'):
            await pool.run(["true"], workdir="/nope")
        with pytest.raises(CommandNotExecutable, match='exec "/etc/passwd": permission denied'):
            await pool.run(["/etc/passwd"])
        with pytest.raises(UsageError, match="null character"):
            await pool.run(["a\0b"])
        with pytest.raises(TimeoutError):
            await pool.run(["sleep", "1000"], timeout=0.2)
        large = "x" * 100_000  # more than a pipe holds; one argument may have 128 KiB
        assert (await pool.run(["sh", "-c", 'echo "${#1} ${#2}"', "sh", large, large])).stdout == b"100000 100000\n"


async def test_a_command_has_the_forms_of_an_exec(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 1, env={"BASE": "1", "GONE": "1"}) as pool,
    ):
        script = 'echo "$BASE $EXTRA ${GONE-unset}"; pwd'
        result = await pool.run(["sh", "-c", script], env=["EXTRA=2", "GONE"], workdir=Path("/tmp"), timeout="1m")
        assert result.stdout == b"1 2 unset\n/tmp\n"
        result = await pool.run(["sh", "-c", script], env={"EXTRA": "2", "GONE": None})
        assert result.stdout == b"1 2 unset\n/\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"command": "echo x"}, "^command: a list of arguments is expected, not 'echo x'$"),
        ({"command": ["echo", 1]}, "^command: a text is expected, not 1$"),
        ({"command": ["a\0b"]}, "null character"),
        ({"env": {"A": 1}}, "^env A: a text is expected, not 1$"),
        ({"env": {"A=B": "1"}}, '^environment variable "A=B": not a name$'),
        ({"env": {"A": "\0"}}, "null character"),
        ({"workdir": "tmp"}, "not an absolute path"),
        ({"timeout": "soon"}, "not a time"),
    ],
    ids=str,
)
async def test_what_is_refused_costs_no_container(
    crungo: Crungo, busybox_reference: str, wrong: dict[str, Any], message: str
) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 1) as pool,
    ):
        processes, containers = {process.pid for process in descendants()}, os.listdir(crungo.root / "containers")
        with pytest.raises(UsageError, match=message):
            await pool.run(**{"command": ["true"], **wrong})
        assert os.listdir(crungo.root / "containers") == containers
        assert {process.pid for process in descendants()} <= processes  # who has started it may have ended since


async def test_an_entrypoint_takes_the_command(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 1, entrypoint=["echo", "x"]) as echo,
        engine.pool(busybox_reference, 1, entrypoint="/nope") as nope,
    ):
        assert (await echo.run(["y"])).stdout == b"x y\n"
        assert (await echo.run([])).stdout == b"x\n"
        with pytest.raises(CommandNotFound, match='exec "/nope": no such file or directory'):
            await nope.run(["y"])


async def test_a_pool_ends_with_its_block(crungo: Crungo, busybox_reference: str) -> None:
    async with Engine(root=crungo.root, run=crungo.run) as engine:
        async with engine.pool(busybox_reference, 1) as pool:
            pass
        with pytest.raises(UsageError, match=r"^pool: used outside its `async with` block$"):
            await pool.run(["true"])


async def test_what_a_pool_cannot_be_made_of(crungo: Crungo, busybox_reference: str) -> None:
    async with Engine(root=crungo.root, run=crungo.run) as engine:
        with pytest.raises(UsageError, match="at least 1"):
            async with engine.pool(busybox_reference, 0):
                pass
        with pytest.raises(UsageError, match="terminal"):
            async with engine.pool(busybox_reference, 1, tty=True):
                pass
        with pytest.raises(ContainerError, match="nobody-knows"):
            async with engine.pool(ContainerConfig(image=busybox_reference, user="nobody-knows"), 1) as pool:
                await pool.run(["true"])


async def test_waiting_containers_have_the_limits_and_the_user(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 1, user="1000:1000", memory="64m") as pool,
    ):
        result = await pool.run(["sh", "-c", "id -u; grep CapEff /proc/self/status; ls /proc/self/fd | wc -l"])
        uid, effective, descriptors = (result.stdout or b"").splitlines()
        assert uid == b"1000"
        assert int(effective.split()[1], 16) == 0
        assert int(descriptors) == 4, "three, and the one that ls reads with"


async def test_a_container_that_has_ended_runs_nothing(crungo: Crungo, busybox_reference: str) -> None:
    async with Engine(root=crungo.root, run=crungo.run) as engine, engine.container(busybox_reference, ["true"]) as box:
        await box.wait()
        with pytest.raises(NotRunning, match="is not running"):
            await box.run(["true"])


async def test_a_container_that_was_killed_while_it_waited_is_replaced(crungo: Crungo, busybox_reference: str) -> None:
    """By the kernel for want of memory, or by somebody: no command was lost with it."""
    async with (
        Engine(root=crungo.root, run=crungo.run) as engine,
        engine.pool(busybox_reference, 2) as pool,
    ):
        own = os.readlink("/proc/self/ns/pid")
        waiting = [process.pid for process in descendants() if os.readlink(f"/proc/{process.pid}/ns/pid") != own]
        assert len(waiting) == 2
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
            wait_for_exit(pid, 5)
        assert (await pool.run(["echo", "x"])).stdout == b"x\n"
