"""What differs on hosts of pure cgroup v2: namespaces of cgroups, cgroups below cgroups, devices by eBPF.

On another host, ``make test-v2`` runs it in a virtual machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.support.api import engine, remains
from tests.support.command import Crungo
from tests.support.leaks import CGROUPS

pytestmark = pytest.mark.skipif(
    not (CGROUPS / "cgroup.controllers").exists(), reason="not a host of cgroup v2: make test-v2 boots one"
)

LIMITS = ("-m", "64m", "--cpus", "0.5", "--pids-limit", "50")
FILES = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")
EXPECTED = [str(64 << 20), "0", "50000 100000", "50"]
SHOW = "cd /sys/fs/cgroup && cat " + " ".join(FILES)


def cgroup_of(container: str) -> Path:
    return CGROUPS / f"crungo-{container}"


@pytest.mark.anyio
async def test_limits_are_the_same_inside_and_outside(crungo: Crungo, busybox_reference: str) -> None:
    """The container sees its own cgroup as the root, and cannot write to it."""
    script = f"{SHOW}; cat /proc/self/cgroup; mkdir /sys/fs/cgroup/x 2>&1; exec sleep 1000"
    async with (
        engine(crungo) as api,
        api.container(
            busybox_reference, ["sh", "-c", script], memory="64m", cpus=0.5, pids_limit=50, cap_add=["ALL"]
        ) as container,
    ):
        text = b""
        async for piece in container.output():
            text += piece.data
            if text.count(b"\n") == 6:
                break
        *inside, group, refusal = text.decode().splitlines()
        assert inside == EXPECTED
        assert group == "0::/"
        assert "Read-only file system" in refusal
        assert [(cgroup_of(container.id) / name).read_text().strip() for name in FILES] == EXPECTED


@pytest.mark.anyio
async def test_a_further_process_has_a_cgroup_of_its_own(crungo: Crungo, busybox_reference: str) -> None:
    """It is below the container's, whose limits hold for it."""
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sleep", "1000"], memory="64m", pids_limit=50) as container,
    ):
        top = cgroup_of(container.id)
        async with container.exec(["sleep", "1000"]) as process:
            (below,) = top.glob("exec-*")
            assert (below / "cgroup.procs").read_text().split() == [str(process.pid)]
            assert len((top / "cgroup.procs").read_text().split()) == 1
            result = await container.run(["tail", "/dev/zero"])
            assert result.returncode == 137
        assert not list(top.glob("exec-*"))
        assert container.returncode is None


def test_devices(crungo: Crungo, busybox_reference: str) -> None:
    """A node alone gives no access: the filter of the cgroup decides."""
    script = """
        mknod /zero c 1 5 && head -c 3 /zero | wc -c
        mknod /memory c 1 1 && head -c 1 /memory
        mknod /disk b 254 0 && head -c 1 /disk
        echo x > /dev/null && echo null
    """
    done = crungo("run", "--cap-add", "MKNOD,SYS_RAWIO", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout == "3\nnull\n"
    assert done.stderr.count("Operation not permitted") == 2
    done = crungo("run", "--privileged", busybox_reference, "sh", "-c", "head -c 1 /dev/kmsg | wc -c", check=0)
    assert done.stdout == "1\n"


@pytest.mark.anyio
async def test_nothing_is_left_of_a_hundred(crungo: Crungo, busybox_reference: str, anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("once is enough")
    async with engine(crungo) as api, anyio.create_task_group() as group:
        turns = anyio.CapacityLimiter(4)

        async def one(number: int) -> None:
            async with turns:
                done = await api.run(busybox_reference, ["sh", "-c", f"exit {number}"], memory="64m")
                assert done.returncode == number

        for number in range(100):
            group.start_soon(one, number)
    assert not remains(crungo, "crungo-")


@pytest.fixture
def service() -> Iterator[Path]:
    """A cgroup two levels below the root, as systemd makes them for its services."""
    controllers = "+cpu +memory +pids"
    (CGROUPS / "cgroup.subtree_control").write_text(controllers)
    above = CGROUPS / "tests.slice"
    below = above / "tests.service"
    below.mkdir(parents=True)
    (above / "cgroup.subtree_control").write_text(controllers)
    yield below
    for inner in below.glob("init"):
        inner.rmdir()
    below.rmdir()
    above.rmdir()


ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


def test_below_a_service_of_systemd(crungo: Crungo, busybox_reference: str, service: Path) -> None:
    command = crungo.argv("run", *LIMITS, busybox_reference, "sh", "-c", SHOW)
    done = subprocess.run(
        ["sh", "-c", ENTER, service, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == EXPECTED


NAMESPACE = """
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    test "$(cat /proc/self/cgroup)" = 0::/
    "$@"
    "$@" >/dev/null
"""


def test_within_a_container(crungo: Crungo, busybox_reference: str, service: Path) -> None:
    """What looks like the root is not: its processes forbid controllers for the cgroups below (cgroups(7)).

    They move to a cgroup of their own, once.
    """
    command = crungo.argv("run", *LIMITS, busybox_reference, "sh", "-c", SHOW)
    isolated = ["unshare", "--cgroup", "--mount", "--propagation", "private", "sh", "-euc", NAMESPACE, "sh"]
    done = subprocess.run(
        ["sh", "-c", ENTER, service, *isolated, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == EXPECTED
    assert {name for name in os.listdir(service) if (service / name).is_dir()} == {"init"}
