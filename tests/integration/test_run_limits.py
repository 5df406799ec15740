"""Limits of a container, read back from inside and from the host, and what happens to those that go beyond."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.image import Layer

UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()
MIB = 1 << 20


@contextmanager
def cgroup(crungo: Crungo, reference: str, tmp_path: Path, *flags: str) -> Iterator[dict[str, str]]:
    """The files of a running container's cgroup, as the host sees them."""
    cidfile = tmp_path / "id"
    # It runs until its input ends.
    with crungo.start(
        "run", "-i", "--cidfile", cidfile, *flags, reference, "sh", "-c", "echo up; cat", stdin=-1
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        yield _Files(cidfile.read_text())
        process.stdin.close()
        assert process.wait(30) == 0


class _Files(dict[str, str]):
    """Reads a file of the cgroup, in whichever hierarchy it is, when it is asked for."""

    def __init__(self, identifier: str) -> None:
        self._identifier = identifier

    def __getitem__(self, name: str) -> str:
        for folder in Path("/sys/fs/cgroup").glob(f"**/crungo-{self._identifier}"):
            if (folder / name).exists():
                return (folder / name).read_text().strip()
        raise KeyError(name)


def test_memory_and_cpus(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    with cgroup(crungo, busybox_reference, tmp_path, "-m", "256m", "--cpus", "0.5") as files:
        if UNIFIED:
            assert files["memory.max"] == str(256 * MIB)
            assert files["memory.swap.max"] == "0"
            assert files["cpu.max"] == "50000 100000"
        else:
            assert files["memory.limit_in_bytes"] == str(256 * MIB)
            assert (files["cpu.cfs_quota_us"], files["cpu.cfs_period_us"]) == ("50000", "100000")
        assert files["pids.max"] == "2048"


@pytest.mark.parametrize(
    ("size", "expected"), [("64M", 64 * MIB), ("0.125g", 128 * MIB), ("33554432", 32 * MIB), ("65536kb", 64 * MIB)]
)
def test_sizes_of_memory(crungo: Crungo, busybox_reference: str, size: str, expected: int) -> None:
    file = "memory.max" if UNIFIED else "memory/memory.limit_in_bytes"
    done = crungo("run", "-m", size, busybox_reference, "cat", f"/sys/fs/cgroup/{file}", check=0)
    assert done.stdout == f"{expected}\n"


def test_without_limits(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    with cgroup(crungo, busybox_reference, tmp_path, "-m", "0", "--cpus", "0", "--pids-limit", "-1") as files:
        assert files["pids.max"] == "max"
        if UNIFIED:
            assert (files["memory.max"], files["cpu.max"]) == ("max", "max 100000")
        else:
            assert int(files["memory.limit_in_bytes"]) > 1 << 60
            assert files["cpu.cfs_quota_us"] == "-1"


@pytest.mark.skipif(
    not UNIFIED and not Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
    reason="the kernel does not account for swap",
)
@pytest.mark.parametrize(
    ("flags", "expected"), [([], 64), (["--memory-swap", "128m"], 128), (["--memory-swap=-1"], None)]
)
def test_swap(crungo: Crungo, busybox_reference: str, tmp_path: Path, flags: list[str], expected: int | None) -> None:
    with cgroup(crungo, busybox_reference, tmp_path, "-m", "64m", *flags) as files:
        if UNIFIED:
            assert files["memory.swap.max"] == ("max" if expected is None else str((expected - 64) * MIB))
        elif expected is None:
            assert int(files["memory.memsw.limit_in_bytes"]) > 1 << 60
        else:
            assert files["memory.memsw.limit_in_bytes"] == str(expected * MIB)


def test_more_memory_than_allowed(crungo: Crungo, busybox_reference: str) -> None:
    """tail keeps the last line, and this one has no end."""
    done = crungo("run", "-m", "64m", busybox_reference, "tail", "/dev/zero")
    assert (done.returncode, done.stdout) == (137, "")


def test_a_child_with_more_memory_than_allowed(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "-m", "64m", busybox_reference, "sh", "-c", "tail /dev/zero; echo it got $?", check=0)
    assert done.stdout == "it got 137\n"


def test_the_share_of_a_cpu(crungo: Crungo, busybox_reference: str) -> None:
    """The kernel holds back what spins: throttled periods are counted."""
    file = "cpu.stat" if UNIFIED else "cpu/cpu.stat"
    script = f"i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; grep nr_throttled /sys/fs/cgroup/{file}"
    done = crungo("run", "--cpus", "0.1", busybox_reference, "sh", "-c", script, check=0)
    assert int(done.stdout.split()[1]) > 0


def test_a_fork_bomb(crungo: Crungo, busybox_reference: str) -> None:
    """It runs until the kernel has refused it a process; the shell that waits for that only uses what is built in."""
    file = "pids.events" if UNIFIED else "pids/pids.events"
    wait = f"while read -r _ refused < /sys/fs/cgroup/{file} && [ $refused = 0 ]; do :; done; echo $refused"
    script = f"bomb() {{ bomb | bomb & }}; (bomb) & {wait}"
    done = crungo("run", "--init", "--pids-limit", "20", busybox_reference, "sh", "-c", script, check=0)
    assert int(done.stdout) > 0


def test_the_number_of_processes(crungo: Crungo, busybox_reference: str) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo all"
    assert crungo("run", "--pids-limit", "10", busybox_reference, "sh", "-c", script, check=0).stdout == "all\n"
    done = crungo("run", "--pids-limit", "9", busybox_reference, "sh", "-c", script, check=2)
    assert "can't fork: Resource temporarily unavailable" in done.stderr


def test_ulimits(crungo: Crungo, busybox_reference: str) -> None:
    flags = [
        "--ulimit",
        "nofile=100:200",
        "--ulimit",
        "core=0",
        "--ulimit",
        "stack=1048576",
        "--ulimit",
        "nofile=101:201",
    ]
    done = crungo("run", *flags, busybox_reference, "cat", "/proc/self/limits", check=0)
    limits = {line[:25].strip(): line[25:].split()[:2] for line in done.stdout.splitlines()}
    assert limits["Max open files"] == ["101", "201"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max stack size"] == ["1048576", "1048576"]


def test_a_ulimit_holds(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo(
        "run", "--ulimit", "fsize=1024", busybox_reference, "sh", "-c", "head -c 4096 /dev/zero > /f; stat -c %s /f"
    )
    assert done.stdout == "1024\n"


def test_limits_are_the_commands_alone(crungo: Crungo, busybox_reference: str) -> None:
    """Not those of what makes the container, which writes files of its own."""
    script = "echo alive; ulimit -f; echo x > /f"
    done = crungo("run", "--ulimit", "fsize=0", busybox_reference, "sh", "-c", script, check=1)
    assert (done.stdout, done.stderr) == ("alive\n0\n", "sh: write error: File too large\n")


def test_the_lowest_limit_of_open_files(crungo: Crungo, push_image: PushImage, tmp_path: Path) -> None:
    """It is enough for a container with as much to it as there can be; one less is refused in clear words."""
    reference = push_image("many-layers", *(Layer().file(f"of/{number}") for number in range(60)))
    volumes = [word for number in range(5) for word in ("-v", f"{tmp_path}:/volumes/{number}")]
    rest = [*volumes, "--init", "--read-only", "--privileged", "-t", "--crun-debug", reference, "sh", "-c", "ulimit -n"]
    assert crungo("run", "--ulimit", "nofile=16", *rest, check=0).stdout == "16\r\n"
    refused = crungo("run", "--ulimit", "nofile=15", *rest, check=125).stderr
    assert "too low to start a container with; the least is 16\n" in refused


def with_open_files(crungo: Crungo, soft: int, hard: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["prlimit", f"--nofile={soft}:{hard}", *crungo.argv(*arguments)]
    return subprocess.run(command, env=crungo.environ(), capture_output=True, text=True, check=False)


def test_the_callers_limit_of_open_files_is_the_containers(crungo: Crungo, push_image: PushImage) -> None:
    """It does not hold for the making: to mount the root takes an open file for each layer. The hard limit does."""
    reference = push_image("many-layers", *(Layer().file(f"of/{number}") for number in range(60)))
    crungo("pull", reference, check=0)
    done = with_open_files(crungo, 40, 4096, "run", reference, "sh", "-c", "ulimit -n; ulimit -Hn")
    assert (done.stdout, done.stderr) == ("40\n4096\n", "")
    done = with_open_files(crungo, 40, 60, "run", reference, "true")
    assert (done.returncode, done.stderr) == (
        125,
        "crungo: mount the container's root: Too many open files\n"
        "hint: it takes an open file for each layer of the image: raise the limit (ulimit -Hn, or LimitNOFILE= of a"
        " service)\n",
    )


def test_limits_beyond_the_callers(crungo: Crungo, busybox_reference: str) -> None:
    ceiling = int(Path("/proc/sys/fs/nr_open").read_text())
    done = crungo("run", "--ulimit", f"nofile={ceiling + 1}", busybox_reference, "true", check=125)
    assert done.stderr == (
        f"crungo: --ulimit nofile={ceiling + 1}:{ceiling + 1}: the kernel's ceiling is {ceiling} (fs.nr_open)\n"
    )


def test_the_container_cannot_change_its_limits(crungo: Crungo, busybox_reference: str) -> None:
    file = "memory.max" if UNIFIED else "memory/memory.limit_in_bytes"
    script = f"echo 1g > /sys/fs/cgroup/{file}"
    done = crungo("run", "-m", "64m", "--cap-add", "ALL", busybox_reference, "sh", "-c", script, check=1)
    assert "Read-only file system" in done.stderr
