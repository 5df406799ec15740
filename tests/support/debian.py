"""Layers made of Debian packages: a program and the libraries that it needs, and nothing else of a system.

Packages are downloaded by apt-get from the host's own archive, once, into ``build/packages``, and unpacked by dpkg-deb.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from tests.support.image import Layer
from tests.support.registry import ROOT

__all__ = ["packages_layer"]

CACHE = ROOT / "build" / "packages"


def packages_layer(*names: str) -> Layer:
    """One layer with these packages and the libraries that they depend on; for a running system it has no more."""
    tree = CACHE / "-".join(names)
    if not tree.exists():
        part = tree.with_name(f"{tree.name}.part-{os.getpid()}")
        archives = part.with_name(f"{part.name}-archives")
        for folder in (part, archives):
            folder.mkdir(parents=True)
        try:
            _download(names, archives)
        except subprocess.CalledProcessError:  # a machine whose lists are missing, or name versions that are gone
            subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True)
            _download(names, archives)
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", archive, part], check=True)
            archive.unlink()
        archives.rmdir()
        part.rename(tree)
    return _layer(tree)


def _download(names: tuple[str, ...], folder: Path) -> None:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *sorted(_closure(names))]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _closure(names: tuple[str, ...]) -> set[str]:
    """The packages, and their dependencies as far as they are libraries."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        found |= waiting
        command = ["apt-cache", "depends", "--important", "--no-recommends", "--no-suggests", *sorted(waiting)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        waiting = set()
        for line in shown.stdout.splitlines():
            kind, _, needed = line.strip().partition(": ")
            if kind.removeprefix("|") in ("Depends", "PreDepends") and needed.startswith(("lib", "lua")):
                waiting.add(needed.partition(":")[0])
        waiting -= found
    return found


def _layer(tree: Path) -> Layer:
    layer = Layer()
    for parent, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(parent, name)
            inside = str(path.relative_to(tree))
            mode = path.lstat().st_mode
            if inside.startswith("usr/share/") or inside == "usr/share":
                continue  # documents and translations
            if stat.S_ISLNK(mode):
                layer.symlink(inside, os.readlink(path))
            elif stat.S_ISDIR(mode):
                layer.directory(inside, stat.S_IMODE(mode))
            else:
                layer.file(inside, path.read_bytes(), stat.S_IMODE(mode))
    # Where a package has the loader below /usr only, the system has this link.
    if not (tree / "lib64").is_symlink() and not (tree / "lib64").exists() and (tree / "usr/lib64").exists():
        layer.symlink("lib64", "usr/lib64")
    return layer.directory("tmp", 0o1777)
