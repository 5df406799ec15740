#!/usr/bin/env python3
"""Fetch, into ``build/wheelhouse``, crungo's wheel and those that it needs, for the Python of Debian 12.

pip runs here, with this machine's own settings, so that the bare root that the wheel is tested in needs neither a
network nor any of them. Only wheels are taken: the root has no compiler.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "build" / "wheelhouse"
PYTHON, GLIBC = "3.11", 36  # Debian 12's


def main() -> None:
    (wheel,) = (ROOT / "dist").glob("crungo-*.whl")
    shutil.rmtree(HOUSE, ignore_errors=True)
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    abis = ["cp" + PYTHON.replace(".", ""), "abi3", "none"]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--dest", str(HOUSE), "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
        *(f"--platform={name}" for name in platforms),
        *(f"--abi={name}" for name in abis),
        str(wheel),
    ]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not fetch the wheels that crungo needs: see its messages above")


if __name__ == "__main__":
    main()
