"""What a container may do: capabilities, system calls, privileges; and what it is denied of /proc and /sys."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.filters import ALLOW, AUDIT_ARCH_X86_64, decide
from tests.support.image import Layer

# Numbers of capabilities(7).
CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE = 0, 1, 3, 4, 5, 6, 7, 8, 10
NET_ADMIN, NET_RAW, SYS_CHROOT, SYS_ADMIN, MKNOD, SETFCAP = 12, 13, 18, 21, 27, 31
DEFAULT = {CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP}

Status = Callable[..., dict[str, str]]


def own_capabilities() -> set[int]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return numbers(line.split()[1])
    raise AssertionError


def numbers(mask: str) -> set[int]:
    return {number for number in range(64) if int(mask, 16) >> number & 1}


@pytest.fixture
def status(crungo: Crungo, busybox_reference: str) -> Status:
    """``status(*flags)``: what /proc/self/status says inside."""

    def call(*flags: str) -> dict[str, str]:
        done = crungo("run", *flags, busybox_reference, "cat", "/proc/self/status", check=0)
        return dict(line.split(":\t", 1) for line in done.stdout.splitlines())

    return call


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], DEFAULT),
        (["--cap-add", "SYS_ADMIN"], DEFAULT | {SYS_ADMIN}),
        (["--cap-add", "cap_sys_admin,mknod", "--cap-drop", "KILL"], (DEFAULT | {SYS_ADMIN, MKNOD}) - {KILL}),
        (["--cap-drop", "ALL"], set()),
        (["--cap-drop", "all", "--cap-add", "NET_ADMIN"], {NET_ADMIN}),
        (["--cap-add", "ALL"], own_capabilities()),
        (["--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"], own_capabilities() - {SYS_ADMIN}),
        (["--net", "host"], DEFAULT | {NET_RAW}),
        (["--net", "host", "--cap-drop", "NET_RAW"], DEFAULT),
        (["--privileged"], own_capabilities()),
        (["--privileged", "--cap-drop", "ALL"], own_capabilities()),
    ],
)
def test_capabilities(status: Status, flags: list[str], expected: set[int]) -> None:
    found = status(*flags)
    expected = expected & own_capabilities()
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert numbers(found[name]) == expected, name
    assert numbers(found["CapInh"]) == numbers(found["CapAmb"]) == set()


@pytest.mark.parametrize("flags", [[], ["--privileged"], ["--cap-add", "ALL"]])
def test_other_users_have_no_capabilities(status: Status, flags: list[str]) -> None:
    found = status("-u", "1000", *flags)
    assert numbers(found["CapEff"]) == numbers(found["CapPrm"]) == set()
    assert numbers(found["CapBnd"]) == (own_capabilities() if flags else DEFAULT)


def test_capabilities_of_a_file(crungo: Crungo, push_image: PushImage, busybox: Path) -> None:
    """What a layer gives a program with security.capability, a user gets by executing it."""
    # struct vfs_cap_data of linux/capability.h: revision 2, effective; permitted and inheritable, twice 32 bits.
    value = b"\x01\0\0\2" + (1 << CHOWN).to_bytes(4, "little") + bytes(12)
    xattr = {"SCHILY.xattr.security.capability": value.decode()}
    layer = Layer().file("bin/chowning", busybox.read_bytes(), 0o755, pax_headers=xattr)
    layer.directory("apart").symlink("apart/chown", "/bin/chowning").symlink("apart/stat", "/bin/busybox")
    reference = push_image("security/capable", layer)
    script = "touch /tmp/x; {} 0:0 /tmp/x; stat -c %u /tmp/x"
    done = crungo("run", "-u", "1000", reference, "sh", "-c", script.format("/apart/chown"), check=0)
    assert done.stdout == "0\n"
    done = crungo("run", "-u", "1000", reference, "sh", "-c", script.format("chown"), check=0)
    assert done.stdout == "1000\n"
    flags = ["-u", "1000", "--security-opt", "no-new-privileges"]
    done = crungo("run", *flags, reference, "sh", "-c", script.format("/apart/chown"), check=0)
    assert done.stdout == "1000\n"


def test_seccomp_is_on_by_default(status: Status) -> None:
    assert (status()["Seccomp"], status()["NoNewPrivs"]) == ("2", "0")
    assert status("--security-opt", "seccomp=unconfined")["Seccomp"] == "0"
    assert status("--privileged")["Seccomp"] == "0"
    assert status("--security-opt", "no-new-privileges")["NoNewPrivs"] == "1"
    assert status("--security-opt", "no-new-privileges:true", "-u", "1000")["NoNewPrivs"] == "1"


def test_the_default_profile(crungo: Crungo, busybox_reference: str) -> None:
    """unshare(2) of a user namespace needs no capability, and is denied all the same."""
    script = "unshare -U true && echo allowed"
    done = crungo("run", busybox_reference, "sh", "-c", script, check=1)
    assert done.stderr == "unshare: unshare(0x10000000): Operation not permitted\n"
    if int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0:
        flags = ["--security-opt", "seccomp=unconfined"]
        assert crungo("run", *flags, busybox_reference, "sh", "-c", script, check=0).stdout == "allowed\n"


def test_a_profile_opens_with_a_capability(crungo: Crungo, busybox_reference: str) -> None:
    script = "mount -t tmpfs x /tmp && echo mounted"
    crungo("run", busybox_reference, "sh", "-c", script, check=1)
    flags = ["--cap-add", "SYS_ADMIN"]
    assert crungo("run", *flags, busybox_reference, "sh", "-c", script, check=0).stdout == "mounted\n"


def test_a_profile_of_ones_own(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    flags = ["--security-opt", f"seccomp={tmp_path}/profile.json"]
    done = crungo("run", *flags, busybox_reference, "mkdir", "/x", check=1)
    assert done.stderr == "mkdir: can't create directory '/x': Protocol error\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "seccomp"),
        ("[]", "seccomp"),
        ('{"defaultAction": "SCMP_ACT_FLY"}', "SCMP_ACT_FLY"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": 5}', "syscalls"),
    ],
)
def test_a_profile_that_is_none(crungo: Crungo, busybox_reference: str, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    flags = ["--security-opt", f"seccomp={tmp_path}/profile.json"]
    done = crungo("run", *flags, busybox_reference, "true", check=125)
    assert why in done.stderr.splitlines()[0]


HIDDEN = ["acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list"]


def test_hidden_paths(crungo: Crungo, busybox_reference: str) -> None:
    paths = [path for path in ("/proc/" + name for name in HIDDEN) if os.path.exists(path)]
    paths += [path for path in ("/sys/firmware", "/sys/devices/virtual/powercap") if os.path.exists(path)]
    script = "for f in $*; do if [ -d $f ]; then ls $f; else cat $f; fi; done"
    assert paths
    assert crungo("run", busybox_reference, "sh", "-c", script, "sh", *paths, check=0).stdout == ""
    shown = crungo(
        "run", "--security-opt", "systempaths=unconfined", busybox_reference, "cat", "/proc/interrupts", check=0
    )
    assert "CPU0" in shown.stdout


def test_read_only_paths(crungo: Crungo, busybox_reference: str) -> None:
    script = "for f in bus fs irq sys; do grep \" /proc/$f \" /proc/mounts | cut -d' ' -f4 | cut -c1-2; done"
    done = crungo("run", "--cap-add", "ALL", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout == "ro\n" * 4
    write = "echo 1 > /proc/sys/kernel/panic_on_warn"
    done = crungo("run", "--cap-add", "ALL", busybox_reference, "sh", "-c", write, check=1)
    assert "Read-only file system" in done.stderr
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    group = "/sys/fs/cgroup/x" if unified else "/sys/fs/cgroup/pids/x"
    done = crungo("run", "--cap-add", "ALL", busybox_reference, "mkdir", group, check=1)
    assert "Read-only file system" in done.stderr


def test_privileged(crungo: Crungo, busybox_reference: str) -> None:
    """Nothing hidden, nothing read-only, every device of the host that is not a terminal's."""
    script = "grep -c -e ' /proc/' -e ' /sys/firmware' /proc/mounts; grep ' /sys ' /proc/mounts; ls /dev"
    done = crungo("run", "--privileged", busybox_reference, "sh", "-c", script, check=0)
    count, sysfs, *devices = done.stdout.splitlines()
    assert count == "0"
    assert sysfs.split()[3].startswith("rw,")
    own = {name for name in os.listdir("/dev") if not name.startswith(("pts", "tty", "console"))}
    nodes = {name for name in own if os.path.exists(f"/dev/{name}") and not os.path.isdir(f"/dev/{name}")}
    links = {name for name in nodes if os.path.islink(f"/dev/{name}")}
    assert nodes - links <= {*devices, "log"}


def test_namespaces(crungo: Crungo, busybox_reference: str) -> None:
    script = "for f in pid ipc uts mnt net; do readlink /proc/self/ns/$f; done; ps | wc -l"
    done = crungo("run", busybox_reference, "sh", "-c", script, check=0)
    *found, processes = done.stdout.splitlines()
    own = {os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "ipc", "uts", "mnt", "net")}
    assert own.isdisjoint(found)
    assert int(processes) <= 4  # the heading, sh, ps and wc
    done = crungo("run", "--net", "host", busybox_reference, "readlink", "/proc/self/ns/net", check=0)
    assert done.stdout.strip() == os.readlink("/proc/self/ns/net")


def test_the_hosts_mounts_are_not_seen(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", busybox_reference, "cat", "/proc/mounts", check=0)
    assert str(crungo.root) not in done.stdout
    assert done.stdout.splitlines()[0].startswith("overlay / overlay ")


def test_the_callers_environment_stays_outside(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", busybox_reference, "env", env={"SECRET": "x", "LD_PRELOAD": ""}, check=0)
    assert "SECRET" not in done.stdout
    assert "LD_" not in done.stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
def test_the_filter_decides_in_few_steps(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    """It is asked about every system call of the container. Numbers of arch/x86/entry/syscalls/syscall_64.tbl."""
    crungo("--runroot", str(tmp_path), "run", busybox_reference, "true", check=0)
    (compiled,) = (tmp_path / "containers" / ".cache" / "seccomp").iterdir()  # libcrun's
    program = compiled.read_bytes()
    answers = [decide(program, AUDIT_ARCH_X86_64, number) for number in range(460)]
    allowed = {number for number, (answer, _) in enumerate(answers) if answer == ALLOW}
    assert {0, 1, 59, 60, 231, 257, 435} & allowed == {0, 1, 59, 60, 231, 257}  # read, write, execve, …; not clone3
    assert not {165, 166, 169, 175, 246, 250, 272, 308, 321} & allowed  # mount, reboot, bpf, setns, …
    assert max(steps for _, steps in answers) < 64
    assert sum(steps for _, steps in answers) / len(answers) < 16
