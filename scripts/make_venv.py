#!/usr/bin/env python3
"""Make ``.venv`` with crungo's dependencies, those of development, and what its build needs.

``make_venv.py [GROUP...]``: further groups are those of pyproject.toml (``bench``).

pip's own settings (index, certificates, caches) are used as they are. The development group is read here, since
the pip of Debian 12 and 13's first releases does not know dependency groups.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"


def main() -> None:
    python = VENV / "bin" / "python"
    if not works(python):
        print(f"making .venv with Python {sys.version.split()[0]}", flush=True)
        venv.create(VENV, with_pip=True, clear=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *(requirement for group in sys.argv[1:] for requirement in project["dependency-groups"][group]),
    ]
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not install what crungo needs: see its messages above")


def works(python: Path) -> bool:
    """Whether this .venv can be used: a moved checkout or an upgraded Python breaks its links."""
    try:
        return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    main()
