"""What pyproject.toml cannot say: the cffi extension module, and the static programs."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.build import build


class BuildPrograms(Command):
    """Compile ``crungo-init``, the process 1 of ``--init``, and ``crungo-isolate``, which starts spawners.

    They are static: the one runs inside images that may hold no C library at all, and the other starts sooner. They are
    data of the package, not modules; the methods are those that setuptools asks of a step of ``build``, editable
    installs included.
    """

    user_options: ClassVar[list[Any]] = []
    programs = ("crungo-init", "crungo-isolate")
    package = Path("crungo", "runtime")

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        assert self.build_lib is not None
        folder = Path() if self.editable_mode else Path(self.build_lib)
        for source, name in zip(self.get_source_files(), self.programs, strict=True):
            self._compile(source, folder / self.package / name)

    def _compile(self, source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own first: a container may be running the old program.
        part = target.with_name(f".{target.name}.{os.getpid()}")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        options = ["-std=gnu17", "-D_GNU_SOURCE", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
        subprocess.run([*compiler, *options, "-o", str(part), source], check=True)
        part.replace(target)

    def get_source_files(self) -> list[str]:
        return [str(self.package / "programs" / f"{name}.c") for name in self.programs]

    def get_outputs(self) -> list[str]:
        assert self.build_lib is not None
        return [str(Path(self.build_lib, self.package, name)) for name in self.programs]

    def get_output_mapping(self) -> dict[str, str]:
        names = [str(self.package / name) for name in self.programs]
        return dict(zip(self.get_outputs(), names, strict=True)) if self.editable_mode else {}


class Build(build):
    """The usual build, and the programs."""

    sub_commands: ClassVar[list[Any]] = [*build.sub_commands, ("build_programs", None)]


setup(
    cffi_modules=["crungo/runtime/native/builder.py:ffibuilder"],
    cmdclass={"build": Build, "build_programs": BuildPrograms},
)
