#!/usr/bin/env python3
"""Make a bare Debian 12 in ``build/debian-12``: Python with venv, and nothing else that crungo could lean on.

It is the machine that the wheel is tested on. debootstrap makes it from Debian's own packages, once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "debian-12"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FALLBACK_ARCHIVE = "http://deb.debian.org/debian"  # of hosts that are not Debian
PACKAGES = ["python3", "python3-venv"]


def main() -> None:
    if (TARGET / "usr/bin/python3").exists():
        return
    if os.geteuid() != 0:
        sys.exit("making a bare Debian 12 needs root, for debootstrap")
    part = TARGET.with_name("debian-12.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    print("making a bare Debian 12 in build/debian-12", flush=True)
    command = [
        "debootstrap", f"--keyring={KEYRING}", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        "bookworm", str(part), archive_address(),
    ]  # fmt: skip
    # Mounts that a failed debootstrap leaves behind go with its mount namespace.
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr, file=sys.stderr)
        sys.exit(f"debootstrap: exit code {done.returncode}")
    shutil.rmtree(part / "var/cache/apt", ignore_errors=True)
    part.rename(TARGET)


def archive_address() -> str:
    """The host's own Debian archive, so that a mirror or proxy that it uses is used here too."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            active = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
            for address in re.findall(r"https?://[^\s\]]+", active):
                cleaned: str = address.rstrip("/")
                if cleaned.endswith("/debian"):
                    return cleaned
    return FALLBACK_ARCHIVE


if __name__ == "__main__":
    main()
