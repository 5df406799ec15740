#!/usr/bin/env python3
"""Make sure that this Debian or Ubuntu machine has what a step needs: ``host_packages.py build|demo|bench|test...``

Packages that are missing are installed by apt, as root or through sudo; without either they are named and the
script fails. Programs that the demo and the tests only start (a registry, a busybox) are not installed but
unpacked into build/tools: the registry's package would start a service on the host, and the static busybox would
push another one aside. ``build/tools/bin`` then holds both, wherever they came from.

It runs before anything else exists, under whatever Python the host calls python3.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "build" / "tools"

GROUPS = {
    "build": [
        "gcc", "libc6-dev", "make", "nasm", "pkg-config", "ca-certificates", "debian-archive-keyring",
        "libseccomp-dev", "libcap-dev", "libarchive-dev", "libzstd-dev", "libssl-dev",
    ],
    "demo": [],
    "bench": ["gcc", "libc6-dev", "mount", "util-linux", "iproute2", "curl"],
    "test": ["skopeo", "umoci", "tmux", "debootstrap", "mount", "util-linux"],
    "vm": ["qemu-system-x86", "debootstrap", "e2fsprogs"],
}  # fmt: skip
PROGRAMS = {
    "bench": {"docker-registry": "docker-registry", "busybox-static": "busybox"},
    "demo": {"docker-registry": "docker-registry", "busybox-static": "busybox"},
    "test": {"docker-registry": "docker-registry", "busybox-static": "busybox"},
    "vm": {"docker-registry": "docker-registry", "busybox-static": "busybox"},
}
KERNEL = "linux-image-cloud-amd64"


def main(groups: list[str]) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this very script is what tells
        sys.exit(f"crungo needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}: set PYTHON=…")
    if not shutil.which("dpkg-query") or not shutil.which("apt-get"):
        everything = [*GROUPS["build"], *GROUPS["test"], *PROGRAMS["test"]]
        sys.exit(f"not a Debian or Ubuntu machine: install the likes of {' '.join(everything)} yourself")
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "lock").open("wb") as lock:  # make -j may want two groups at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = [package for group in groups for package in GROUPS[group]]
        install(missing([*wanted, *python_packages()]))
        for group in groups:
            for package, program in PROGRAMS.get(group, {}).items():
                provide(package, program)
        if "vm" in groups:
            provide_kernel(ROOT / "build" / "vm" / "linux")


def python_packages() -> list[str]:
    """What Debian splits off its own Python; another Python has these or cannot be helped by apt."""
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    pip = bool(glob.glob(os.path.join(sysconfig.get_path("stdlib"), "ensurepip", "__init__.py")))
    if headers and pip:
        return []
    if not os.path.realpath(sys.executable).startswith("/usr/bin/python3"):
        lacking = " and ".join([*(["its C headers"] if not headers else []), *(["ensurepip"] if not pip else [])])
        sys.exit(f"{sys.executable} lacks {lacking}: install another Python, or set PYTHON=/usr/bin/python3")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [*([f"{version}-dev"] if not headers else []), *([f"{version}-venv"] if not pip else [])]


def missing(packages: list[str]) -> list[str]:
    """Those packages that dpkg does not know as installed."""
    if not packages:
        return []
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n", *packages]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    installed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("installed ")}
    return [package for package in packages if package not in installed]


def install(packages: list[str]) -> None:
    if not packages:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if as_root() is None:
        sys.exit(f"missing packages, and neither root nor sudo to install them: run as root: {' '.join(command)}")
    print(f"installing: {' '.join(packages)}", flush=True)
    if have_lists() and apt(command[1:]) == 0:
        return
    if apt(["update"]) != 0 or apt(command[1:]) != 0:
        sys.exit(f"apt-get could not install {' '.join(packages)}: see its messages above")


def as_root() -> list[str] | None:
    """What to put before a command to run it as root; None: there is no way."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    # Without a terminal a password prompt would wait for nobody.
    prefix = ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]
    return prefix if subprocess.run([*prefix, "true"], check=False).returncode == 0 else None


def have_lists() -> bool:
    return bool(glob.glob("/var/lib/apt/lists/*_Packages*"))


def apt(arguments: list[str]) -> int:
    """Run apt-get as root, silent unless it fails; another apt that holds the lock is waited for."""
    environ = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"]
    command = [*(as_root() or []), *environ, "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode


def provide(package: str, program: str) -> None:
    """Put a program of a package into build/tools/bin: the host's, or one unpacked from the package."""
    link = TOOLS / "bin" / program
    if link.exists():
        return
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    tree = TOOLS / package
    if not missing([package]):
        found = shutil.which(program)
    else:
        unpack(package, tree)
        candidates = [tree / folder / program for folder in ("bin", "usr/bin")]
        found = next((str(path) for path in candidates if path.is_file()), None)
    if found is None:
        sys.exit(f"{package}: no program {program} in it")
    link.symlink_to(found)


def provide_kernel(tree: Path) -> None:
    """Unpack the kernel that virtual machines boot: the one that the meta-package depends on."""
    if tree.is_dir():
        return
    if not have_lists() and apt(["update"]) != 0:
        sys.exit("apt-get could not update its lists: see its messages above")
    shown = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True, check=True).stdout
    package = next((line.split()[-1] for line in shown.splitlines() if "Depends: linux-image-" in line), None)
    if package is None:
        sys.exit(f"apt-get knows no package {KERNEL}: the virtual machine boots Debian's kernel")
    part = tree.with_name("linux.part")
    unpack(package, part)
    part.rename(tree)


def unpack(package: str, tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    print(f"unpacking: {package}", flush=True)
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(download, cwd=tree, capture_output=True, check=False).returncode:
        if as_root() is None or apt(["update"]) != 0:
            sys.exit(f"apt-get knows no package {package}, and there is neither root nor sudo to update its lists")
        subprocess.run(download, cwd=tree, check=True)
    for archive in tree.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(tree)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
