"""What pyproject.toml cannot say: the cffi extension modules, and the static programs."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

RUNTIME = Path("crungo", "runtime")
PROGRAMS = {
    "crungo-init": [],
    "crungo-isolate": [],
    "crungo-forks": [
        *("start", "order", "report", "failure", "crun", "cgroups", "library", "rootfs", "users", "syscalls"),
    ],
    "crungo-unpack": ["unpack", "unpack_confine", "tarstream", "decompress", "blob", "syscalls"],
}
"""What is compiled, each from its own file in ``programs`` and those of ``native``."""

WRAPPED = [
    "seccomp_init",
    "libcrun_configure_handler",
    "get_user_name",
    "set_home_env",
    "move_process_to_cgroup",
    "libcrun_set_selinux_label",
]
"""Calls of libcrun's that come to ``native/crun.c``."""


class BuildPrograms(Command):
    """Compile the programs beside the interpreter (``programs/*.c``).

    They are static: ``crungo-init`` runs inside images that may hold no C library at all, ``crungo-isolate`` starts
    sooner, ``crungo-forks`` and ``crungo-unpack`` are small to fork.

    They are data of the package, not modules; the methods are those that
    setuptools asks of a step of ``build``, editable installs included.
    """

    user_options: ClassVar[list[Any]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        assert self.build_lib is not None
        folder = Path() if self.editable_mode else Path(self.build_lib)
        for name, parts in PROGRAMS.items():
            self._compile(name, parts, folder / RUNTIME / name)

    def _compile(self, name: str, parts: list[str], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own first: a container may be running the old program.
        part = target.with_name(f".{target.name}.{os.getpid()}")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        options = ["-std=gnu17", "-Wall", "-Wextra", "-s", "-o", str(part), *sources(name)]
        if name == "crungo-unpack":
            options += unpacking()
        elif parts:
            options += with_libcrun()
        else:
            options += ["-Os", "-Werror", "-static", "-D_GNU_SOURCE"]
        subprocess.run([*compiler, *options], check=True)
        part.replace(target)

    def get_source_files(self) -> list[str]:
        return [source for name in PROGRAMS for source in sources(name)]

    def get_outputs(self) -> list[str]:
        assert self.build_lib is not None
        return [str(Path(self.build_lib, RUNTIME, name)) for name in PROGRAMS]

    def get_output_mapping(self) -> dict[str, str]:
        names = [str(RUNTIME / name) for name in PROGRAMS]
        return dict(zip(self.get_outputs(), names, strict=True)) if self.editable_mode else {}


def sources(program: str) -> list[str]:
    """The C files of a program."""
    return [
        str(RUNTIME / "programs" / f"{program}.c"),
        *(str(RUNTIME / "native" / f"{part}.c") for part in PROGRAMS[program]),
    ]


def with_libcrun() -> list[str]:
    """Options for a program that holds libcrun: static, where there is an archive of each library."""
    source = runpy.run_path(str(RUNTIME / "native" / "source.py"))
    tree = source["libcrun"]()
    libraries = [source["static_or_shared"](library) for library in ("seccomp", "cap")]
    return [
        "-O2",
        "-Wno-missing-field-initializers",
        "-ffunction-sections",
        f"-I{RUNTIME / 'native'}",
        *(f"-I{folder}" for folder in source["include_folders"](tree)),
        *([] if any(library.startswith("-l") for library in libraries) else ["-static"]),
        *(f"-Wl,--wrap={function}" for function in WRAPPED),
        "-Wl,--gc-sections",
        *source["archives"](tree),
        *libraries,
    ]


def unpacking() -> list[str]:
    """Options for the program that reads archives from outside: static where it can be, and hard to take over."""
    source = runpy.run_path(str(RUNTIME / "native" / "source.py"))
    tree = source["isal"]()
    libraries = [source["static_or_shared"](library) for library in ("archive", "zstd", "crypto")]
    shared = any(library.startswith("-l") for library in libraries)
    return [
        *("-O2", "-fPIE", "-pie" if shared else "-static-pie", "-Wl,-z,relro,-z,now"),
        *("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"),
        *("-ffunction-sections", "-Wl,--gc-sections"),
        f"-I{RUNTIME / 'native'}",
        f"-I{tree / 'include'}",
        *(str(tree / archive) for archive in source["ISAL"].archives),
        *libraries,
        "-pthread",
    ]


class Build(build):
    """The usual build, and the programs."""

    sub_commands: ClassVar[list[Any]] = [*build.sub_commands, ("build_programs", None)]


setup(
    cffi_modules=["crungo/runtime/native/builder.py:ffibuilder", "crungo/io/native/builder.py:ffibuilder"],
    cmdclass={"build": Build, "build_programs": BuildPrograms},
)
