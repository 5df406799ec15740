"""What pyproject.toml cannot say: the cffi extension module, and the static program ``crungo-init``."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.build import build


class BuildInit(Command):
    """Compile ``crungo-init``, the process 1 of ``--init``.

    It is static because it runs inside images that may hold no C library at all. It is data of the package, not
    a module; the methods are those that setuptools asks of a step of ``build``, editable installs included.
    """

    user_options: ClassVar[list[Any]] = []
    source = "crungo/runtime/init/crungo-init.c"
    target = "crungo/runtime/crungo-init"

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        assert self.build_lib is not None
        folder = Path() if self.editable_mode else Path(self.build_lib)
        target = folder / self.target
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own first: a container may be running the old program.
        part = target.with_name(f".{target.name}.{os.getpid()}")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        options = ["-std=gnu17", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
        subprocess.run([*compiler, *options, "-o", str(part), self.source], check=True)
        part.replace(target)

    def get_source_files(self) -> list[str]:
        return [self.source]

    def get_outputs(self) -> list[str]:
        assert self.build_lib is not None
        return [os.path.join(self.build_lib, self.target)]

    def get_output_mapping(self) -> dict[str, str]:
        return {self.get_outputs()[0]: self.target} if self.editable_mode else {}


class Build(build):
    """The usual build, and crungo-init."""

    sub_commands: ClassVar[list[Any]] = [*build.sub_commands, ("build_init", None)]


setup(
    cffi_modules=["crungo/runtime/native/builder.py:ffibuilder"],
    cmdclass={"build": Build, "build_init": BuildInit},
)
