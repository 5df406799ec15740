"""The spawner as a process of the host: its end, its owner's end, its interpreter, and the host's own cgroups."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from crungo import Engine
from crungo.config import Mount
from crungo.errors import CrungoError, SpawnerDied
from tests.support.command import Crungo
from tests.support.events import wait_for_exit, wait_until
from tests.support.image import Layer, make_image
from tests.support.leaks import CGROUPS, Snapshot, descendants, descriptors, settle
from tests.support.stalled import Stalled

BACKENDS = ["asyncio", "trio"]
both = pytest.mark.parametrize("anyio_backend", BACKENDS)
pytestmark = pytest.mark.anyio


@asynccontextmanager
async def engine_of(crungo: Crungo) -> AsyncIterator[Engine]:
    async with Engine(root=crungo.root, run=crungo.run) as engine:
        yield engine


def spawner_of(process: subprocess.Popen[bytes]) -> int:
    """Its own child; those that the spawner forks look alike."""
    (found,) = (
        child.pid
        for child in descendants(process.pid)
        if "crungo.runtime.isolation" in child.command and _parent(child.pid) == process.pid
    )
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def orphans_reaped() -> Iterator[None]:
    """Do for orphans what process 1 does: here, they become children of this process, which is a subreaper.

    A container's first process does not end before every other one has been reaped, also those with a parent outside.
    """
    known = {process.pid for process in descendants()}
    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.01):
            for process in descendants():
                if process.pid not in known:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# Its own end.


@both
async def test_a_killed_spawner_is_one_clear_error(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    """What it owned is ended through the engine, and removed by a successor, before the engine's block is left."""
    folders = [crungo.run, crungo.root / "containers", crungo.root / "names"]
    before = Snapshot.take(folders)
    async with engine_of(crungo) as engine:
        with pytest.raises(SpawnerDied) as caught:  # noqa: PT012 - the block is left by the error
            async with engine.container(busybox_reference, ["sleep", "1000"]) as container:
                os.kill(engine.spawner.pid, signal.SIGKILL)
                await container.wait()
        assert str(caught.value) == "the helper process ended unexpectedly"
        assert wait_for_exit(container.pid, 2)
        with pytest.raises(SpawnerDied):
            await engine.run(busybox_reference, ["true"])
    assert not Snapshot.take(folders).beyond(before).files
    assert settle(before, folders, seconds=1) == []  # zombies are this process's to reap


@both
async def test_a_killed_spawner_ends_a_run(
    crungo: Crungo, busybox_reference: str, tmp_path: Path, anyio_backend: str
) -> None:
    """Although the program holds its streams open, and nobody else could tell of its end."""
    mounts = (Mount(type="bind", source=str(tmp_path), target="/data"),)
    async with engine_of(crungo) as engine, anyio.create_task_group() as group:

        async def kill() -> None:
            await to_thread.run_sync(lambda: wait_until((tmp_path / "started").exists, folders=[tmp_path]))
            os.kill(engine.spawner.pid, signal.SIGKILL)

        group.start_soon(kill)
        with anyio.fail_after(10), pytest.raises(SpawnerDied):
            await engine.run(busybox_reference, ["sh", "-c", "touch /data/started; sleep 1000"], mounts=mounts)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_the_command_line_with_a_killed_spawner(crungo: Crungo, busybox_reference: str, terminal: bool) -> None:
    script = "echo ready; exec sleep 1000"
    if terminal:
        with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as window:
            window.expect("ready")
            os.kill(spawner_of(window.process), signal.SIGKILL)
            assert window.wait() == 125
            window.assert_restored()
            last = window.text.splitlines()[-1]
    else:
        with crungo.start("run", busybox_reference, "sh", "-c", script) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            os.kill(spawner_of(process), signal.SIGKILL)
            _, stderr = process.communicate(timeout=10)
            assert process.returncode == 125
            (last,) = stderr.decode().splitlines()
    assert last == "crungo: the helper process ended unexpectedly"


@both
async def test_a_spawner_killed_while_it_executes(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    """The socket that an execution with a terminal needs for a moment is there; the spawner's successor removes it."""
    with orphans_reaped():
        async with engine_of(crungo) as engine:
            with pytest.raises(SpawnerDied):  # noqa: PT012 - the block is left by the error
                async with engine.container(busybox_reference, ["sleep", "1000"]) as container:
                    folder = crungo.root / "containers" / container.id

                    def work() -> list[str]:
                        return [name for name in os.listdir(folder) if name.startswith("console-")]

                    async with anyio.create_task_group() as group:

                        async def kill() -> None:
                            await to_thread.run_sync(lambda: wait_until(lambda: bool(work()), folders=[folder]))
                            os.kill(engine.spawner.pid, signal.SIGKILL)

                        group.start_soon(kill)
                        while True:
                            try:
                                await container.run(["true"], tty=True)
                            except SpawnerDied:
                                break
                    await container.wait()
    assert not list(crungo.run.glob("work-*"))
    assert not os.listdir(crungo.root / "containers")


@both
async def test_a_spawner_that_can_start_no_child(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    """Wherever in a start it has no descriptor left, that start fails, the next works, and it ends with its engine."""
    async with engine_of(crungo) as engine:
        pid = engine.spawner.pid
        after_runs = []
        for _ in range(2):
            await engine.run(busybox_reference, ["true"])
            after_runs.append(set(descriptors(pid)))
        taken = len(after_runs[0] & after_runs[1])  # others are still being closed, of the run that is over
        usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        refused = 0
        for more in range(6, 16):  # a request brings five
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + more, usual[1]))
            try:
                await engine.run(busybox_reference, ["true"])
            except CrungoError:
                refused += 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        assert refused > 1
        assert (await engine.run(busybox_reference, ["true"])).returncode == 0
    assert not os.listdir(crungo.root / "containers")


PLACES = ["containers", "names"]


@pytest.mark.parametrize("place", PLACES)
def test_a_spawner_killed_while_it_creates(crungo: Crungo, busybox_reference: str, place: str) -> None:
    folder = crungo.root / place
    for _ in range(3):
        with crungo.start("run", busybox_reference, "sleep", "1000") as process:
            wait_until(lambda: bool(os.listdir(folder)), folders=[folder])
            with contextlib.suppress(ProcessLookupError):
                os.kill(spawner_of(process), signal.SIGKILL)
            _, stderr = process.communicate(timeout=10)
            assert process.returncode == 125
            assert stderr == b"crungo: the helper process ended unexpectedly\n"


def test_the_next_start_sweeps(crungo: Crungo, busybox_reference: str) -> None:
    """Both are killed, so that nobody is left to clean up: the next start does, and the name is free at once."""
    folders = [crungo.run, crungo.root / "containers", crungo.root / "names", crungo.root / "leases"]
    before = Snapshot.take(folders)
    command = ["run", "--name", "twice", busybox_reference, "sh", "-c", "echo ready; exec sleep 1000"]
    with crungo.start(*command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        spawner = spawner_of(process)
        process.send_signal(signal.SIGSTOP)  # it must not notice
        os.kill(spawner, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=10)
    left = Snapshot.take(folders).beyond(before)
    assert left.files, "nothing was left, so that this tests nothing"
    assert left.cgroups
    done = crungo("run", "--name", "twice", busybox_reference, "echo", "again", check=0)
    assert done.stdout == "again\n"
    assert settle(before, folders) == []


def test_a_place_that_is_no_directory(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = replace(crungo, run=tmp_path / "file")("run", busybox_reference, "true", check=125)
    assert done.stderr == f"crungo: the helper process failed: {tmp_path}/file/containers: Not a directory\n"


# Its owner's end.

FORKER = """
import os, signal, sys
import anyio
from crungo import Engine

async def main():
    async with Engine(root=sys.argv[1], run=sys.argv[2]) as engine:
        async with engine.container(sys.argv[3], ["sleep", "1000"], stdin=True):
            if (pid := os.fork()) == 0:
                os.close(1)
                os.execvp("sleep", ["sleep", "1000"]) if sys.argv[4] == "exec" else signal.pause()
            print(pid, flush=True)
            if sys.argv[4] == "exit":
                os._exit(7)
            await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize("way", ["exec", "fork", "exit"])
def test_a_fork_of_the_owner_owns_nothing(crungo: Crungo, busybox_reference: str, way: str) -> None:
    """A forked process has the descriptors that containers live by, and may live on: the owner's end is what counts."""
    folders = [crungo.run, crungo.root / "containers", crungo.root / "names"]
    before = Snapshot.take(folders)
    command = [sys.executable, "-c", FORKER, str(crungo.root), str(crungo.run), busybox_reference, way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=crungo.environ()) as process:
        assert process.stdout is not None
        forked = int(process.stdout.readline())
        if way != "exit":
            process.kill()
        process.wait(10)
    try:
        known = {child for child in descendants() if child.pid == forked}
        assert known
        assert settle(replace(before, processes=before.processes | known), folders) == []
    finally:
        os.kill(forked, signal.SIGKILL)
        assert wait_for_exit(forked, 2)
        for lease in (crungo.root / "leases").iterdir():
            lease.unlink()  # a fork held it, until nobody was left to remove it but the next prune


def test_prune_finds_what_nobody_was_left_to_remove(fresh_crungo: Crungo) -> None:
    """An engine in the midst of a pull and its helper, killed at once, leave a lease, a layer and a download."""
    image = make_image([Layer().file("file", os.urandom(2 << 20))])
    root = fresh_crungo.root
    with Stalled(image) as registry, fresh_crungo.start("pull", registry.reference) as process:
        assert registry.asked.wait(10)
        os.kill(process.pid, signal.SIGSTOP)  # it shall not see the end of the other
        spawner = spawner_of(process)
        os.kill(spawner, signal.SIGKILL)
        assert wait_for_exit(spawner, 2)
        process.kill()
        process.wait(10)
    assert {"layer", "sha256"} <= {name.partition("-")[0] for name in os.listdir(root / "ingest")}
    assert len(os.listdir(root / "leases")) == 1
    said = fresh_crungo("system", "prune", "--force", check=0).stdout
    assert f"{root}/ingest/layer-" in said
    assert os.listdir(root / "ingest") == os.listdir(root / "leases") == []


def test_signals_of_the_users_terminal_do_not_reach_it(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.start("run", busybox_reference, "sh", "-c", "echo ready; sleep 1; exit 5") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        spawner = spawner_of(process)
        assert os.getsid(spawner) == os.getpgid(spawner) == spawner
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(spawner, signum)
        process.communicate(timeout=10)
        assert process.returncode == 5


# What containers are forked from.


def forks_of(spawner: int) -> int:
    """The process that forks them; the first processes of containers are in namespaces of their own."""
    (found,) = (
        child.pid
        for child in descendants(spawner)
        if child.command.startswith("crungo-forks")
        and _parent(child.pid) == spawner
        and _mounts(child.pid) == _mounts(spawner)
    )
    return found


def _mounts(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except FileNotFoundError:
        return ""


@both
async def test_what_a_container_is_forked_from_cannot_be_overwritten(
    crungo: Crungo, busybox_reference: str, anyio_backend: str
) -> None:
    """The first process of a container without a command is in its namespaces, and leads to the program."""
    async with engine_of(crungo) as engine, engine.pool(busybox_reference, 2) as pool:
        async with pool.container(["true"]):
            spawner = engine.spawner.pid
            forks = forks_of(spawner)
        waiting = [child.pid for child in descendants(spawner) if _mounts(child.pid) not in ("", _mounts(spawner))]
        assert waiting
        for pid in [*waiting, forks]:
            program = f"/proc/{pid}/exe"
            assert os.path.basename(os.readlink(program)) == "crungo-forks"
            now = os.stat(program)
            # To open it for writing would fail in any case, as long as anybody runs it.
            with pytest.raises(OSError, match="Read-only file system"):
                os.utime(program, ns=(now.st_atime_ns, now.st_mtime_ns))


def test_a_container_cannot_use_what_it_is_forked_from(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    for command in (["/proc/self/exe"], ["/proc/self/exe", "1", "/tmp"], ["/script"]):
        done = crungo("run", "--privileged", f"-v={script}:/script", busybox_reference, *command)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@both
async def test_a_killed_fork_server_is_replaced(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    """What runs goes on; what is just being started may fail, by one clear error."""
    async with engine_of(crungo) as engine, engine.container(busybox_reference, ["cat"], stdin=True) as container:
        for _ in range(3):
            spawner = engine.spawner.pid
            os.kill(forks_of(spawner), signal.SIGKILL)
            assert (await engine.run(busybox_reference, ["echo", "on"])).stdout == b"on\n"
            assert (await container.run(["echo", "further"])).stdout == b"further\n"
            assert engine.spawner.pid == spawner

        async def start() -> None:
            try:
                assert (await engine.run(busybox_reference, ["echo", "on"])).stdout == b"on\n"
            except CrungoError as error:
                assert str(error) == "create container: its helper was killed"  # noqa: PT017 - it may not fail

        for number in range(10):
            await engine.run(busybox_reference, ["true"])  # so that there is one to be killed
            forks = forks_of(spawner)
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(start)
                await anyio.sleep(number * 0.002)  # wherever they are by then
                os.kill(forks, signal.SIGKILL)
        assert container.stdin is not None
        await container.stdin.aclose()
        assert await container.wait() == 0
    assert not os.listdir(crungo.root / "containers")


@both
async def test_a_fork_server_that_can_fork_nothing(crungo: Crungo, busybox_reference: str, anyio_backend: str) -> None:
    async with engine_of(crungo) as engine:
        await engine.run(busybox_reference, ["true"])
        pid = forks_of(engine.spawner.pid)
        usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for more in range(5):  # an order brings five
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (4 + more, usual[1]))
            with pytest.raises(CrungoError, match=r"^create container: (Too many open files|its helper was killed)"):
                await engine.run(busybox_reference, ["true"])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        assert (await engine.run(busybox_reference, ["echo", "on"])).stdout == b"on\n"
        assert forks_of(engine.spawner.pid) == pid
    assert not os.listdir(crungo.root / "containers")


@both
async def test_an_interpreter_that_cannot_be_started_is_told(
    crungo: Crungo, busybox_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    async with engine_of(crungo) as engine:
        with pytest.raises(SpawnerDied, match=f"start {tmp_path}/none: No such file or directory"):
            await engine.run(busybox_reference, ["true"])
        monkeypatch.undo()


# The host.

HIDDEN = "umount /sys/fs/cgroup/unified && find /sys/fs/cgroup/unified"


@pytest.mark.skipif(not (CGROUPS / "unified/cgroup.controllers").exists(), reason="not a hybrid host")
def test_nothing_is_made_in_the_directory_below_the_v2_tree(crungo: Crungo, busybox_reference: str) -> None:
    """On a hybrid host the v2 tree is mounted on a directory of a tmpfs; the spawner takes it away for itself."""

    def hidden() -> str:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDDEN]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = hidden()
    mounts = Path("/proc/self/mountinfo").read_text()
    with crungo.start("run", "-i", busybox_reference, "sh", "-c", "echo ready; cat", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert hidden() == before
        assert Path("/proc/self/mountinfo").read_text() == mounts
        process.communicate(timeout=10)
    assert hidden() == before
