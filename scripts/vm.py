#!/usr/bin/env python3
"""Run integration tests on a host of pure cgroup v2, whatever this one is: ``vm.py [pytest's arguments]``.

qemu boots Debian's kernel for clouds with the bare Debian 12 of ``build/debian-12`` as its disk; there is no init
system, and no controller is enabled before crungo needs it. The checkout's crungo and tests go with the initramfs, so
that a change of theirs needs no new disk. Nothing of a run is kept: the disk is a snapshot.

Ends with pytest's exit code.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VM = ROOT / "build" / "vm"
DEBIAN = ROOT / "build" / "debian-12"
KERNEL = VM / "linux"  # unpacked by host_packages.py
TOOLS = ROOT / "build" / "tools" / "bin"
PYTHON, GLIBC = "3.11", 36  # Debian 12's
MODULES = ("virtio_pci", "virtio_blk", "overlay")
DISK_SIZE = "2G"  # sparse
MEMORY = "2G"
LIMIT = 1800.0  # seconds
TESTS = (
    "test_cgroup_v2",
    "test_run_limits",
    "test_run_security",
    "test_api_container",
    "test_api_exec",
    "test_nothing_left",
)
SELECTION = "not trio and not random_moments and not SIGHUP and not SIGINT"
"""What depends on the version of cgroups, without what repeats it: emulation is ten times slower."""

FIRST = """#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /dev /disk
busybox mount -t devtmpfs devtmpfs /dev
for module in {modules}; do busybox insmod "/modules/$module.ko"; done
busybox mount -t ext4 -o noatime /dev/vda /disk
busybox cp -a /payload/. /disk/
busybox umount /dev
exec busybox switch_root /disk /bin/sh /crungo/init.sh
"""

SECOND = """
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
busybox=/crungo/build/tools/bin/busybox
$busybox ip link set lo up
$busybox ifconfig lo 127.0.0.1
mount --make-rshared /
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=xterm-256color
export PYTHONPATH=/crungo:/crungo/site
cd /crungo
xargs --null --arg-file arguments setsid --wait python3 -m pytest -p no:cacheprovider </dev/null >/dev/ttyS0 2>&1
echo "exit code $?" >/dev/ttyS1
$busybox poweroff -f
"""


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # by way of every clean-up
    qemu = shutil.which(f"qemu-system-{platform.machine()}")
    if qemu is None or not KERNEL.is_dir() or not DEBIAN.is_dir():
        sys.exit("no qemu, no kernel, or no Debian to boot: make test-v2 gets them")
    VM.mkdir(parents=True, exist_ok=True)
    disk, initramfs, result = VM / "disk.ext4", VM / f"initramfs-{os.getpid()}", VM / f"result-{os.getpid()}"
    # Its packages are those that the project wanted when it was made.
    if not disk.exists() or disk.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        make_disk(disk)
    try:
        usual = [*(f"tests/integration/{name}.py" for name in TESTS), "-k", SELECTION]
        make_initramfs(initramfs, arguments or usual)
        boot(qemu, disk, initramfs, result)
        words = result.read_text().split() if result.exists() else []
    finally:
        initramfs.unlink(missing_ok=True)
        result.unlink(missing_ok=True)
    if words[:2] != ["exit", "code"]:
        sys.exit("the virtual machine ended without a result")
    return int(words[2])


def boot(qemu: str, disk: Path, initramfs: Path, result: Path) -> None:
    """Run the machine to its end; its console is our output."""
    (kernel,) = (KERNEL / "boot").glob("vmlinuz-*")
    command = [
        *(qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        # KVM within a virtual machine may hang in the middle of the boot; emulation is slow and sure.
        *("-accel", os.environ.get("VM_ACCEL", "tcg,thread=multi"), "-cpu", "max", "-smp", "2", "-m", MEMORY),
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off"),
        *("-drive", f"file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"),
        *("-serial", "stdio", "-serial", f"file:{result}"),
    ]
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        machine.wait(LIMIT)
    except subprocess.TimeoutExpired:
        print(f"the virtual machine did not end within {LIMIT:.0f} s", file=sys.stderr)
    finally:
        if machine.poll() is None:
            machine.send_signal(signal.SIGKILL)
            machine.wait()


def make_disk(disk: Path) -> None:
    """The bare Debian as a file system, with the packages that crungo and its tests need in /crungo/site."""
    print("making the disk of the virtual machine", flush=True)
    site, part = VM / "site", disk.with_suffix(".part")
    shutil.rmtree(site, ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {"pytest", "hypothesis", "trio", "pyte"}
    development = [line for line in project["dependency-groups"]["dev"] if line.split(">")[0] in wanted]
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)] + [f"manylinux2014_{machine}"]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("--target", str(site), "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
        *(f"--platform={name}" for name in platforms),
        *(f"--abi={name}" for name in ("cp" + PYTHON.replace(".", ""), "abi3", "none")),
        *project["project"]["dependencies"],
        *development,
    ]
    subprocess.run(command, check=True)
    compile_in_debian(site)
    part.unlink(missing_ok=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(DEBIAN), str(part), DISK_SIZE], check=True)
    script = copy_commands(site, "/crungo/site")
    subprocess.run(["debugfs", "-w", "-f", "-", str(part)], input=script, text=True, check=True, capture_output=True)
    part.rename(disk)


def compile_in_debian(site: Path) -> None:
    """Compile by Debian's Python, and not in the machine, where it takes a minute."""
    # The hash of a source is not looked at again: its time is lost on the way to the disk.
    python = "python3 -m compileall -q -s /mnt -p /crungo/site --invalidation-mode unchecked-hash /mnt"
    script = f'mount --bind "$1" "$2/mnt" && exec chroot "$2" {python}'
    isolated = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(site), str(DEBIAN)]
    subprocess.run(isolated, check=True)


def copy_commands(tree: Path, target: str) -> str:
    """What debugfs(8) has to do to write a tree into a file system that is not mounted."""
    lines = ["mkdir /crungo", f"mkdir {target}"]
    for folder, subfolders, files in os.walk(tree):
        below = os.path.relpath(folder, tree)
        place = target if below == "." else f"{target}/{below}"
        lines += [f'mkdir "{place}/{name}"' for name in subfolders]
        lines += [f'write "{folder}/{name}" "{place}/{name}"' for name in files]
    return "\n".join(lines) + "\n"


def make_initramfs(path: Path, arguments: list[str]) -> None:
    """What starts the machine, and what is copied into the disk before its tests run."""
    modules: dict[str, Path] = {}
    for name in MODULES:
        modules.update({path.stem: path for path in with_dependencies(name)})
    entries: dict[str, bytes | Path] = {
        "init": FIRST.format(modules=" ".join(modules)).encode(),
        "bin/busybox": (TOOLS / "busybox").resolve(),
        "payload/crungo/init.sh": SECOND.encode(),
        "payload/crungo/arguments": "".join(f"{word}\0" for word in arguments).encode(),
        "payload/crungo/pyproject.toml": ROOT / "pyproject.toml",
    }
    entries |= {f"modules/{name}.ko": path for name, path in modules.items()}
    for name in ("busybox", "docker-registry"):
        entries[f"payload/crungo/build/tools/bin/{name}"] = (TOOLS / name).resolve()
    for package in ("crungo", "tests"):
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                entries[f"payload/crungo/{file.relative_to(ROOT)}"] = file
    with gzip.open(path, "wb", compresslevel=1) as archive:
        archive.write(cpio(entries))


def with_dependencies(module: str) -> list[Path]:
    """The file of a kernel module, after those of the ones that it needs."""
    (path,) = KERNEL.glob(f"**/{module}.ko")
    found = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
    assert found, f"{path} is no kernel module"
    needed = [name for name in found[1].decode().split(",") if name]
    return [*(file for name in needed for file in with_dependencies(name)), path]


def cpio(entries: dict[str, bytes | Path]) -> bytes:
    """An archive in the format that the kernel reads (initramfs buffer format); everything in it may be executed."""
    folders = {str(parent) for name in entries for parent in Path(name).parents if str(parent) != "."}
    parts = [_entry(name, 0o040755, b"") for name in sorted(folders)]
    for name, content in entries.items():
        parts.append(_entry(name, 0o100755, content if isinstance(content, bytes) else content.read_bytes()))
    parts.append(_entry("TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(name: str, mode: int, data: bytes) -> bytes:
    # Inode, mode, uid, gid, links, time, size, four device numbers, length of the name, checksum.
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name.encode()) + 1, 0]
    header = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
