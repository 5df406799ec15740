"""What tests of the library share: engines on the tests' store, lines of a process, what is left of a container."""

from __future__ import annotations

import os
from pathlib import Path

import crungo
from tests.support.command import Crungo

__all__ = ["engine", "line", "remains"]


def engine(command: Crungo, **options: object) -> crungo.Engine:
    """An engine on the store of a command line; ``options`` are further ones of its own."""
    return crungo.Engine(root=command.root, run=command.run, **options)  # type: ignore[arg-type]


async def line(process: crungo.Process) -> bytes:
    """The next line of a process's standard output, read byte by byte so that nothing else is taken."""
    assert process.stdout is not None
    text = b""
    while not text.endswith(b"\n"):
        text += await process.stdout.receive(1)
    return text[:-1]


def remains(command: Crungo, identifier: str) -> list[str]:
    """What there is of a container: cgroups, processes in them, directories, names."""
    found = []
    for folder, subfolders, _ in os.walk("/sys/fs/cgroup"):
        for name in subfolders:
            if identifier in name:
                found.append(os.path.join(folder, name))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if identifier in Path(f"/proc/{pid}/cgroup").read_text():
                found.append(f"process {pid}")
        except OSError:
            continue
    places = [command.root / "containers" / identifier, command.run / "containers" / identifier]
    found += [str(place) for place in places if place.exists()]
    names = command.root / "names"
    found += [str(name) for name in names.iterdir() if identifier in os.readlink(name)]
    return found
