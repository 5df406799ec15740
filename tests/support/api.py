"""What tests of the library share: engines on the tests' store, and what is left of one container."""

from __future__ import annotations

import os
from pathlib import Path

import crungo
from tests.support.command import Crungo

__all__ = ["engine", "remains"]


def engine(command: Crungo, **options: object) -> crungo.Engine:
    """An engine on the store of a command line; ``options`` are further ones of its own."""
    return crungo.Engine(root=command.root, run=command.run, **options)  # type: ignore[arg-type]


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
