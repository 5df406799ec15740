"""The cffi builder of ``crungo.runtime._native``, run by setuptools (see ``setup.py``).

One API-mode extension module holds libcrun, libseccomp and libcap, all static, and our C files. Its declarations are in
``*.cdef``, one beside each C file, and the C compiler checks them.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PARTS = ["library", "syscalls", "users", "rootfs", "start"]
OTHERS = ["failure", "report", "order"]  # C files that have no declarations of their own
LIBRARIES = ["seccomp", "cap"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]

# The builder is executed as a file, before any package of crungo can be imported.
_source = runpy.run_path(str(HERE / "source.py"))


def make() -> FFI:
    """The module's declarations and how it is compiled and linked; builds libcrun first where that is missing."""
    tree: Path = _source["libcrun"]()
    builder = FFI()
    for part in PARTS:
        builder.cdef((HERE / f"{part}.cdef").read_text())
    builder.set_source(
        "crungo.runtime._native",
        "\n".join(f'#include "{part}.h"' for part in PARTS),
        # Relative, as setuptools wants sources to be, so that they are found in a source distribution.
        sources=[str((HERE / f"{part}.c").relative_to(ROOT)) for part in (*PARTS, *OTHERS) if part != "start"],
        depends=[str(path.relative_to(ROOT)) for path in sorted(HERE.iterdir()) if path.suffix in (".h", ".cdef")],
        include_dirs=[str(HERE), *_source["include_folders"](tree)],
        extra_compile_args=["-O2", "-std=gnu17", *WARNINGS, "-ffunction-sections", "-fvisibility=hidden"],
        extra_link_args=[
            *_source["archives"](tree),
            *(_source["static_or_shared"](library) for library in LIBRARIES),
            "-Wl,--gc-sections",
            "-Wl,--exclude-libs,ALL",
        ],
    )
    return builder


ffibuilder = make()
