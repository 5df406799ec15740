"""Locks on objects of the store: they wait, notice what was replaced, and keep no process from ending."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from crungo.image import locks
from crungo.image.locks import is_current, lock, open_locked, try_lock


@pytest.mark.anyio
async def test_lock_waits_and_looks_again(tmp_path: Path) -> None:
    path = str(tmp_path / "object")
    first = await lock(path)
    got: list[int] = []

    async def second() -> None:
        got.append(await lock(path))

    async with anyio.create_task_group() as group:
        group.start_soon(second)
        await anyio.sleep(0.05)
        assert got == []
        os.rename(path, path + ".done")  # what waiting was for has its name now
        os.close(first)
    assert is_current(got[0], path)
    assert not is_current(got[0], path + ".done")
    os.close(got[0])


@pytest.mark.anyio
async def test_a_file_in_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await lock(str(tmp_path / "gone" / "object"))
    os.close(await lock(str(tmp_path / "gone" / "directory"), directory=True))


@pytest.mark.anyio
async def test_cancelled_waiting_gives_the_lock_back(tmp_path: Path) -> None:
    path = str(tmp_path / "directory")
    first = await lock(path, directory=True)
    before = len(os.listdir("/proc/self/fd"))
    with anyio.fail_after(30), anyio.move_on_after(0.05):
        await lock(path, directory=True)
    os.close(first)
    with anyio.fail_after(5):
        os.close(await lock(path, directory=True))
        while len(os.listdir("/proc/self/fd")) >= before:  # noqa: ASYNC110 - a thread's end has no event
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_lock_of_a_directory_that_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have it when it is made, and have removed it at the next look."""
    path = str(tmp_path / "x")
    make = os.mkdir
    others = [path]

    def mkdir(name: str, mode: int = 0o777) -> None:
        make(name, mode)
        if others and name == others[0]:
            os.rmdir(others.pop())
            raise FileExistsError(name)

    monkeypatch.setattr(os, "mkdir", mkdir)
    os.close(await lock(path, directory=True))
    assert not others


def test_exit_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    assert try_lock(fd)
    script = (
        "import anyio, sys; from crungo.image.locks import lock\n"
        "async def main():\n    with anyio.move_on_after(0.1):\n        await lock(sys.argv[1])\n"
        "anyio.run(main)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=30)
    os.close(fd)


def test_open_locked(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    assert open_locked(path) is None
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert try_lock(fd)
    assert open_locked(path) is None
    os.close(fd)
    fd_or_none = open_locked(path)
    assert fd_or_none is not None
    os.close(fd_or_none)


@pytest.mark.anyio
async def test_lock_fails_as_the_system_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = await lock(str(tmp_path / "x"))

    def broken(*_: object) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr(locks, "try_lock", lambda _: False)
    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="no locks"):
        await lock(str(tmp_path / "x"))
    os.close(fd)
