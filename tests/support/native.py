"""C that runs between a fork and an exec, callable by itself; and other C files of ours in programs of tests."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from crungo.errors import ContainerError
from crungo.runtime._native import ffi, lib

__all__ = ["compiled", "find_home", "isal", "read_file", "resolve_user"]

NATIVE = Path(__file__).resolve().parents[2] / "crungo" / "runtime" / "native"


def compiled(name: str, parts: Sequence[str], folder: Path, *options: str) -> Path:
    """The program ``tests/support/<name>.c`` with some C files of ``native``, made in a folder."""
    program = folder / name
    files = [Path(__file__).with_name(f"{name}.c"), *(NATIVE / f"{part}.c" for part in parts)]
    command = [*shlex.split(os.environ.get("CC", "cc")), "-std=gnu17", "-g", "-O1", "-Wall", "-Wextra", f"-I{NATIVE}"]
    subprocess.run([*command, *files, "-o", program, "-pthread", *options], check=True)
    return program


def isal() -> list[str]:
    """Options that compile and link ISA-L, as the build has made it."""
    source = runpy.run_path(str(NATIVE / "source.py"))
    tree = source["isal"]()
    return [f"-I{tree / 'include'}", *(str(tree / archive) for archive in source["ISAL"].archives)]


def resolve_user(
    user: str | None, groups: Sequence[str], passwd: bytes, group: bytes
) -> tuple[int, int, tuple[int, ...]]:
    """uid, gid, and all groups, or ContainerError."""
    found, why = ffi.new("struct crungo_user *"), ffi.new("struct crungo_failure *")
    texts = [ffi.new("char[]", os.fsencode(text)) for text in groups]
    spec = ffi.NULL if user is None else ffi.new("char[]", os.fsencode(user))
    # Copies of the exact size: a read beyond them is one that valgrind and the sanitizers see.
    files = [ffi.new("char[]", len(content) or 1) for content in (passwd, group)]
    for file, content in zip(files, (passwd, group), strict=True):
        ffi.memmove(file, content, len(content))
    status = lib.crungo_resolve_user(
        spec, ffi.new("char *[]", texts), len(texts), files[0], len(passwd), files[1], len(group), found, why
    )
    if status < 0:
        assert why.kind == lib.CRUNGO_FAILURE_CONTAINER
        raise ContainerError(ffi.string(why.message).decode(errors="replace"))
    return found.uid, found.gid, tuple(found.groups[0 : found.n_groups])


def find_home(uid: int, passwd: bytes) -> bytes | None:
    """The home that is set for a user without HOME, or None."""
    length, file = ffi.new("size_t *"), ffi.new("char[]", len(passwd) or 1)
    ffi.memmove(file, passwd, len(passwd))
    home = lib.crungo_find_home(uid, file, len(passwd), length)
    return None if home == ffi.NULL else bytes(ffi.buffer(home, length[0]))


def read_file(root: int, name: str) -> bytes:
    """The content of a file below a root, or ContainerError."""
    size, why = ffi.new("size_t *"), ffi.new("struct crungo_failure *")
    content = lib.crungo_read_file(root, name.encode(), size, why)
    if content == ffi.NULL:
        assert why.kind == lib.CRUNGO_FAILURE_CONTAINER
        raise ContainerError(ffi.string(why.message).decode())
    try:
        return bytes(ffi.buffer(content, size[0]))
    finally:
        lib.free(content)
