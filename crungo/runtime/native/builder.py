"""The cffi builder of ``crungo.runtime._native``, run by setuptools (see ``setup.py``).

One API-mode extension module holds libcrun (static), libarchive's tar reader (static), and our C files. Its
declarations are in ``*.cdef``, one beside each C file, and are checked by the C compiler.
"""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
PARTS = ["crun", "syscalls", "unpack"]

# The builder is executed as a file, before any package of crungo is importable.
_source = runpy.run_path(str(HERE / "source.py"))


def static_or_shared(library: str) -> list[str]:
    """Link arguments for a library: its static archive, where the compiler knows one, so that wheels stay small."""
    found = subprocess.run(
        ["cc", f"-print-file-name=lib{library}.a"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return [found] if Path(found).is_absolute() else [f"-l{library}"]


def make() -> FFI:
    tree: Path = _source["libcrun"]()
    builder = FFI()
    for part in PARTS:
        builder.cdef((HERE / f"{part}.cdef").read_text())
    archives = [str(tree / archive) for archive in _source["ARCHIVES"]]
    builder.set_source(
        "crungo.runtime._native",
        "\n".join(f'#include "{part}.h"' for part in PARTS),
        sources=[str((HERE / f"{part}.c").relative_to(HERE.parents[2])) for part in PARTS],
        include_dirs=[str(HERE), str(tree), str(tree / "src"), str(tree / "libocispec" / "src"), str(tree / "libocispec/yajl/src/headers")],
        extra_compile_args=["-O2", "-std=gnu17", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-fvisibility=hidden"],
        extra_link_args=[
            "-Wl,--start-group",
            *archives,
            "-Wl,--end-group",
            *static_or_shared("archive"),
            "-lseccomp",
            "-lcap",
            "-Wl,--gc-sections",
            "-Wl,--exclude-libs,ALL",
        ],
    )
    return builder


ffibuilder = make()
