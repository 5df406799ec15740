"""The cffi builder of ``crungo.io._relay``, run by setuptools (see ``setup.py``).

A module of its own, small, because whoever moves bytes has no use for libcrun and libarchive.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def make() -> FFI:
    """The module's declarations and how it is compiled."""
    builder = FFI()
    builder.cdef((HERE / "relay.cdef").read_text())
    builder.set_source(
        "crungo.io._relay",
        '#include "relay.h"',
        # Relative, as setuptools wants sources to be, so that they are found in a source distribution.
        sources=[str((HERE / "relay.c").relative_to(ROOT))],
        depends=[str((HERE / name).relative_to(ROOT)) for name in ("relay.h", "relay.cdef")],
        include_dirs=[str(HERE)],
        extra_compile_args=["-O2", "-std=gnu17", "-Wall", "-Wextra", "-Wno-missing-field-initializers"],
    )
    return builder


ffibuilder = make()
