"""The wheel, installed by pip into a bare Debian 12 that has Python and nothing of ours, runs containers there.

The bare root is the lower half of an overlay, which with its mounts and processes lives in namespaces of its own: it
stays bare, and nothing of a test outlives it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.registry import ROOT

BUILD = ROOT / "build"

ENTER = r"""
set -eu
mount -t tmpfs tmpfs "$SCRATCH"
mkdir "$SCRATCH/upper" "$SCRATCH/work" "$SCRATCH/root"
mount -t overlay -o "lowerdir=debian-12,upperdir=$SCRATCH/upper,workdir=$SCRATCH/work" overlay "$SCRATCH/root"
mkdir "$SCRATCH/root/wheels" "$SCRATCH/root/var/lib/crungo"
mount --bind wheelhouse "$SCRATCH/root/wheels"
cd "$SCRATCH/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
# The store makes overlays, and one overlay cannot be the upper half of another.
mount -t tmpfs tmpfs var/lib/crungo
pivot_root . mnt
exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
  sh -euc 'umount --lazy /mnt; eval "$1"' sh "$1" </dev/null
"""

INSTALL = """
for program in cc gcc make pkg-config crun runc podman docker; do
    if command -v "$program"; then echo "this root is not bare"; exit 1; fi
done
python3 -m venv /opt/crungo
/opt/crungo/bin/pip install --quiet --no-index --find-links /wheels --no-compile crungo
"""


def in_debian(script: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in the bare root, after crungo has been installed into it."""
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--propagation", "private"]
    return subprocess.run(
        ["unshare", *namespaces, "--", "sh", "-c", ENTER, "sh", INSTALL + script],
        cwd=BUILD,
        env={**os.environ, "SCRATCH": str(scratch)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def ingredients() -> None:
    for name in ("debian-12/usr/bin/python3", "wheelhouse"):
        assert (BUILD / name).exists(), f"no build/{name}: make test-wheel makes it"


def test_the_wheel_runs_containers_on_a_bare_machine(tmp_path: Path, busybox_reference: str) -> None:
    script = f"""
    crungo=/opt/crungo/bin/crungo
    $crungo run --quiet {busybox_reference} echo hello from the wheel
    $crungo run --init {busybox_reference} sh -c 'readlink -f /proc/1/exe >/dev/null; exit 42' || echo "exit code $?"
    $crungo run -m 64m -u app {busybox_reference} id -un
    """
    done = in_debian(script, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == ["hello from the wheel", "exit code 42", "app"]
