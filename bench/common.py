"""Where benchmarks run: a mount namespace with one tmpfs for every store, crungo as users have it installed, and turns.

Whatever a benchmark mounts or writes is below ``build/bench`` or in its own mount namespace; daemons that it starts end
with it. Nothing else of the machine is changed.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

__all__ = [
    "BUILD",
    "ROOT",
    "Crungo",
    "compiled",
    "drive",
    "install",
    "isolate",
    "say",
    "take_turns",
    "workspace",
]

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
_INSIDE = "CRUNGO_BENCH_ISOLATED"
_DEVELOPMENT = ("__", "pip", "setuptools", "_distutils", "trio")  # trio is imported by who finds it


def say(text: str) -> None:
    """Progress, for who is waiting."""
    print(f"  {text}", file=sys.stderr, flush=True)


def isolate() -> None:
    """Go on in a mount namespace of our own; everything mounted there vanishes with the last of our processes."""
    if os.environ.get(_INSIDE):
        return
    if os.geteuid() != 0:
        sys.exit("benchmarks make containers, which needs root")
    specification = sys.modules["__main__"].__spec__
    assert specification is not None
    command = ["unshare", "--mount", "--propagation", "slave", sys.executable, "-m", specification.name, *sys.argv[1:]]
    # Bytecode is cached, as it is for users: see `install`.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    os.execvpe(command[0], command, {**environ, _INSIDE: "1", "PYTHONDONTWRITEBYTECODE": "1"})


@contextmanager
def workspace() -> Iterator[Path]:
    """An empty tmpfs that holds every store, so that no disk, and no deleted file on one, is part of a figure."""
    signal.signal(signal.SIGTERM, _leave)
    folder = BUILD / "tmpfs"
    folder.mkdir(parents=True, exist_ok=True)
    _mount_tmpfs(folder)
    # Peers keep some of their things at fixed places, whatever they are told.
    for place in ("/run", "/etc/docker", "/var/lib/containers", "/etc/cni"):
        if Path(place).is_dir():
            _mount_tmpfs(Path(place))
    # libcrun's and podman's makers of temporary files look here.
    os.environ["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir()
    before = set(_peers_cgroups())
    try:
        yield folder
    finally:
        for group in reversed(list(_peers_cgroups())):
            if group not in before:
                with suppress(OSError):
                    group.rmdir()


def _peers_cgroups() -> Iterator[Path]:
    """The control groups that docker and podman keep their containers in, and leave, parents first."""
    for name in ("docker", "libpod_parent"):
        for top in [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")]:
            yield top
            yield from (path for path in sorted(top.rglob("*")) if path.is_dir())


def _mount_tmpfs(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80%,mode=755", "tmpfs", place], check=True)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crungo:
    """An installed crungo, with a store below ``folder``."""

    python: Path
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """A command line of crungo's."""
        program = str(self.python.with_name("crungo"))
        return [program, "--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"), *arguments]

    def inside(self, work: str, **options: Any) -> Any:
        """What ``bench/inside.py`` measures, in a fresh process that uses the library."""
        places = {"root": str(self.folder / "root"), "run": str(self.folder / "run")}
        command = [str(self.python), str(ROOT / "bench" / "inside.py"), work, json.dumps({**places, **options})]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=True)
        return json.loads(done.stdout)


def environment() -> dict[str, str]:
    """Our environment without what make sets for itself."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", _INSIDE)}


def install(folder: Path) -> Path:
    """A virtual environment such as ``pip install crungo`` makes, on the tmpfs; returns its interpreter.

    The one of the checkout finds crungo by an import hook (an editable install), which costs every process ten
    milliseconds that users do not pay. Dependencies are linked, crungo itself is copied and compiled.
    """
    target = folder / "venv"
    venv.create(target, with_pip=False, symlinks=True)
    ours = next((target / "lib").glob("python*/site-packages"))
    theirs = next((ROOT / ".venv" / "lib").glob("python*/site-packages"))
    for entry in theirs.iterdir():
        if entry.suffix != ".pth" and not entry.name.startswith(_DEVELOPMENT):
            (ours / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "crungo", ours / "crungo", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(ours / "crungo", quiet=2)
    python = target / "bin" / "python"
    script = target / "bin" / "crungo"
    script.write_text(f"#!{python}\nimport sys\nfrom crungo.__main__ import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return python


def compiled(name: str) -> Path:
    """The program of ``bench/<name>.c``."""
    source, program = ROOT / "bench" / f"{name}.c", BUILD / "bin" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        command = [
            "cc",
            "-std=gnu17",
            "-D_GNU_SOURCE",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            str(program),
            str(source),
        ]
        subprocess.run(command, check=True)
    return program


def drive(
    command: Sequence[str], *, count: int, at_once: int = 1, prefix: Sequence[str] = (), env: Mapping[str, str] = {}
) -> tuple[float, list[float]]:
    """Run a command ``count`` times, so many at once; every ``@`` in it becomes a serial number.

    Returns the seconds that all took, and those of each. ``prefix`` is the command that starts the driver.
    """
    driver = [*prefix, str(compiled("drive")), str(count), str(at_once), *command]
    done = subprocess.run(driver, stdout=subprocess.PIPE, text=True, env={**environment(), **env}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(driver)}: exit code {done.returncode}")
    total, *each = (float(line) for line in done.stdout.split())
    return total, each


def take_turns(contenders: Mapping[str, Callable[[], float]], *, rounds: int, label: str) -> dict[str, float]:
    """Each contender's median over the rounds, in each of which all have their turn. A first round does not count."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            before = time.monotonic()
            value = measure()
            say(f"{label}: {name}: {value:.4g}{'' if turn else ' (warm-up)'} [{time.monotonic() - before:.1f} s]")
            if turn:
                values[name].append(value)
    return {name: statistics.median(found) for name, found in values.items()}
