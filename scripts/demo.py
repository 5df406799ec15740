#!/usr/bin/env python3
"""The tour of ``make demo``: a throw-away registry, an image made of Debian's busybox, and crungo running it.

Everything lives in ``.demo`` and is removed at the end; the registry cannot outlive this process. At a terminal the
tour ends in a shell inside a container.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.image import busybox_image, push  # noqa: E402 - the checkout is not on the path before
from tests.support.registry import TOOLS, Registry  # noqa: E402

HOME = ROOT / ".demo"
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def main() -> int:
    if os.geteuid() != 0:
        sys.exit("making containers needs root, and there is neither root nor sudo here")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    shutil.rmtree(HOME, ignore_errors=True)
    try:
        with Registry(HOME / "registry") as registry:
            return tour(push(busybox_image((TOOLS / "busybox").resolve()), registry.address, "busybox"))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(HOME, ignore_errors=True)


def stop(number: int, frame: object) -> NoReturn:
    """Leave by way of every ``finally``."""
    raise SystemExit(128 + number)


def tour(image: str) -> int:
    """Run the examples; returns the first exit code that is not 0."""
    shared = HOME / "data"
    shared.mkdir()
    (shared / "greeting").write_text("a file of the host\n")
    # The second half is for hosts with version 1 of cgroups.
    limits = "cat memory.max cpu.max 2>/dev/null || cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us"

    say(f"A registry is serving a busybox image on loopback, as {bold(image)}.")
    examples = [
        ("The image is pulled over HTTP, then its command runs.", ["run", image, "echo", "hello world"]),
        (
            "Its own processes, its own host name, no network but loopback.",
            ["run", "--hostname", "demo", image, "sh", "-c", "hostname; ps -o pid,comm; ip -o addr | cut -c 1-40"],
        ),
        (
            "A limit on memory and processors (256 MiB; half a processor).",
            ["run", "-m", "256m", "--cpus", "0.5", "-w", "/sys/fs/cgroup", image, "sh", "-c", limits],
        ),
        (
            "A folder of the host, read-only.",
            ["run", "-v", f"{shared}:/data:ro", image, "sh", "-c", "cat /data/greeting; touch /data/new"],
        ),
        ("The exit code is the command's.", ["run", image, "sh", "-c", "exit 42"]),
    ]
    expected = [0, 0, 0, 1, 42]
    for (words, arguments), code in zip(examples, expected, strict=True):
        if (ended := run(words, arguments)) != code:
            print(f"crungo ended with exit code {ended}, and {code} was expected", file=sys.stderr)
            return ended or 1
    if sys.stdin.isatty() and sys.stdout.isatty():
        say("And a shell inside a container: look around, then leave with " + bold("exit") + " or Ctrl-D.")
        run("", ["run", "-it", "--hostname", "demo", image, "sh"])
    say("Nothing is left running.")
    return 0


def run(words: str, arguments: list[str]) -> int:
    if words:
        say(words)
    shown = [f"'{word}'" if " " in word else word for word in arguments]
    print(f"{dim('$')} {bold('crungo ' + ' '.join(shown))}", flush=True)
    command = [sys.executable, "-m", "crungo", "--root", str(HOME / "root"), "--runroot", str(HOME / "run")]
    done = subprocess.run([*command, *arguments], check=False)
    print(dim(f"exit code {done.returncode}"), flush=True)
    return done.returncode


def say(text: str) -> None:
    print(f"\n{paint('32', '▸')} {text}", flush=True)


def bold(text: str) -> str:
    return paint("1", text)


def dim(text: str) -> str:
    return paint("2", text)


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOURS else text


if __name__ == "__main__":
    sys.exit(main())
