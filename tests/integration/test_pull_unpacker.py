"""The unpacker as the engine has it: a confined child of the spawner, which lies or dies as little as it may."""

# ruff: noqa: ASYNC240 - looking whether a process is there does not block

from __future__ import annotations

import gzip
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from crungo.errors import CrungoError, LayerError, SpawnerDied, StoreError
from crungo.paths import Roots
from crungo.runtime.requests import SpawnerProcess
from crungo.runtime.unpacking import SpawnerUnpacker
from tests.support.events import wait_for_exit
from tests.support.leaks import descendants
from tests.support.tarballs import Entry, archive, directory

pytestmark = pytest.mark.anyio

BLOB = gzip.compress(archive(directory(b"d"), Entry(name=b"d/f", content=b"x" * 300_000)), 1)


@asynccontextmanager
async def spawner(tmp_path: Path) -> AsyncIterator[SpawnerProcess]:
    process = SpawnerProcess.start(Roots(root=str(tmp_path / "root"), run=str(tmp_path / "run")))
    try:
        yield process
    finally:
        process.end_requests()
        process.reap()


@pytest.fixture
def blob(tmp_path: Path) -> int:
    path = tmp_path / "blob"
    path.write_bytes(BLOB)
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    (tmp_path / "layer").mkdir()
    return tmp_path / "layer"


def child_of(pid: int) -> int:
    """The process that unpacks; waits until it is there."""
    while not (found := [child.pid for child in descendants(pid) if _name(child.pid) == "crungo-layer\n"]):
        os.sched_yield()
    return found[0]


def _name(pid: int) -> str:
    """What the kernel calls a process; a child names itself when it is set up."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def locked_in(pid: int, layer: Path) -> bool:
    return os.path.samefile(f"/proc/{pid}/root", layer)


async def test_confined_in_a_mount_without_devices(tmp_path: Path, layer: Path, blob: int) -> None:
    """The private copy of the mount is made, which takes a directory of the spawner's own mount namespace."""
    async with spawner(tmp_path) as process:
        unpacker = SpawnerUnpacker(process)
        async with unpacker.unpack(blob, str(layer), media_type="", limit=1 << 30) as unpacking:
            pid = child_of(process.pid)
            await unpacking.advance(1000)
            while not locked_in(pid, layer):
                await anyio.lowlevel.checkpoint()
            flags = os.statvfs(f"/proc/{pid}/root").f_flag
            assert flags & os.ST_NODEV
            assert flags & os.ST_NOSUID
            assert flags & os.ST_NOEXEC
            unpacked = await unpacking.finish(len(BLOB))
        assert (unpacked.entries, unpacked.opaque) == (2, False)
        assert not Path(f"/proc/{pid}").exists()
    os.close(blob)


@pytest.mark.parametrize(
    "end",
    [
        (signal.SIGSYS, LayerError, "layer: its unpacker was ended when it tried what it may not (SIGSYS)"),
        (signal.SIGSEGV, LayerError, "layer: its unpacker crashed (SIGSEGV)"),
        (signal.SIGKILL, StoreError, "unpack layer: the unpacking process was ended by SIGKILL"),
        (signal.SIGRTMIN, StoreError, "unpack layer: the unpacking process was ended by SIGRTMIN"),
    ],
)
@pytest.mark.parametrize("told", [0, 1000, len(BLOB)])
async def test_a_child_that_dies(
    tmp_path: Path, layer: Path, blob: int, end: tuple[signal.Signals, type[CrungoError], str], told: int
) -> None:
    signum, kind, message = end
    async with spawner(tmp_path) as process:
        async with SpawnerUnpacker(process).unpack(blob, str(layer), media_type="", limit=1 << 30) as unpacking:
            pid = child_of(process.pid)
            os.kill(pid, signal.SIGSTOP)
            if told:
                await unpacking.advance(told)
            os.kill(pid, signum)
            with suppress(ProcessLookupError):  # SIGKILL does not wait for it
                os.kill(pid, signal.SIGCONT)
            with pytest.raises(kind) as caught:
                await unpacking.finish(len(BLOB))
            assert caught.value.message == message
        # The spawner goes on with the next.
        (layer.parent / "again").mkdir()
        async with SpawnerUnpacker(process).unpack(
            blob, f"{layer.parent}/again", media_type="", limit=9**9
        ) as unpacking:
            assert (await unpacking.finish(len(BLOB))).entries == 2
    os.close(blob)


async def test_a_child_that_hangs_does_not_hold_anybody_up(tmp_path: Path, layer: Path, blob: int) -> None:
    """Stopped: it can neither notice that it was given up nor end by itself."""
    async with spawner(tmp_path) as process:
        with anyio.fail_after(10):
            async with SpawnerUnpacker(process).unpack(blob, str(layer), media_type="", limit=1 << 30) as unpacking:
                pid = child_of(process.pid)
                os.kill(pid, signal.SIGSTOP)
                for available in range(1, 20_000):  # far more than a socket holds
                    await unpacking.advance(available)
                with anyio.move_on_after(0.1) as scope:
                    await unpacking.finish(len(BLOB))
                assert scope.cancelled_caught
            assert not Path(f"/proc/{pid}").exists()
    os.close(blob)


async def test_the_end_of_the_spawner_waits_for_no_archive(tmp_path: Path, layer: Path, blob: int) -> None:
    process = SpawnerProcess.start(Roots(root=str(tmp_path / "root"), run=str(tmp_path / "run")))
    channel, request = process.request(
        {"op": "unpack", "directory": str(layer), "limit": 1 << 30, "size": None}, [blob]
    )
    request.send()
    pid = child_of(process.pid)
    os.kill(pid, signal.SIGSTOP)
    process.end_requests()  # with the channel still open
    with anyio.fail_after(10):
        await anyio.wait_readable(process.pidfd)
    process.reap()
    channel.close()
    os.close(blob)
    assert not Path(f"/proc/{pid}").exists()


async def test_no_such_directory(tmp_path: Path, blob: int) -> None:
    async with spawner(tmp_path) as process:
        unpacker = SpawnerUnpacker(process)
        async with unpacker.unpack(blob, f"{tmp_path}/missing", media_type="", limit=1 << 30) as unpacking:
            with pytest.raises(StoreError, match="unpack: layer: its directory: No such file or directory"):
                await unpacking.finish(len(BLOB))
    os.close(blob)


async def test_what_forks_the_children_is_killed(tmp_path: Path, layer: Path, blob: int) -> None:
    """Children are the spawner's, not its own: they go on, and the next one comes from another."""
    async with spawner(tmp_path) as process:
        unpacker = SpawnerUnpacker(process)
        async with unpacker.unpack(blob, str(layer), media_type="", limit=1 << 30) as first:
            child_of(process.pid)
            server = next(each.pid for each in descendants(process.pid) if _name(each.pid) == "crungo-unpack\n")
            os.kill(server, signal.SIGKILL)
            assert wait_for_exit(server, 10)  # an order that it got before would die with it
            (layer.parent / "again").mkdir()
            async with unpacker.unpack(blob, f"{layer.parent}/again", media_type="", limit=1 << 30) as second:
                assert (await second.finish(len(BLOB))).entries == 2
            assert (await first.finish(len(BLOB))).entries == 2
    os.close(blob)


async def test_the_spawner_dies(tmp_path: Path, layer: Path, blob: int) -> None:
    async with spawner(tmp_path) as process:
        unpacker = SpawnerUnpacker(process)
        with anyio.fail_after(10):
            async with unpacker.unpack(blob, str(layer), media_type="", limit=1 << 30) as unpacking:
                pid = child_of(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(SpawnerDied):
                    await unpacking.finish(len(BLOB))
    os.close(blob)
