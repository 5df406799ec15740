"""The crungo command line, run as users run it: a process of its own, with a store of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.support.terminal import Terminal

__all__ = ["Crungo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crungo:
    """``crungo("run", image, "true")`` runs it to its end and returns a ``CompletedProcess`` of text.

    ``root`` and ``run`` are its two folders; ``env`` is added to the environment of every call.
    """

    root: Path
    run: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None

    def argv(self, *arguments: str | os.PathLike[str]) -> list[str]:
        """The whole command line, for a test that starts the process itself."""
        command = [sys.executable, "-m", "crungo", "--root", str(self.root), "--runroot", str(self.run)]
        return [*command, *(os.fspath(word) for word in arguments)]

    def environ(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, **self.env, **(env or {})}

    def __call__(
        self,
        *arguments: str | os.PathLike[str],
        input: str | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        check: int | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. ``check`` is the exit code that it must have. Without ``input``, stdin is /dev/null."""
        done = self.binary(
            *arguments, input=None if input is None else input.encode(), env=env, check=check, timeout=timeout
        )
        stdout, stderr = (data.decode(errors="surrogateescape") for data in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    def binary(
        self,
        *arguments: str | os.PathLike[str],
        input: bytes | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
        check: int | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """The same, in bytes."""
        done = subprocess.run(
            self.argv(*arguments), input=input, stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True, env=self.environ(env), cwd=self.cwd, timeout=timeout, check=False,
        )  # fmt: skip
        if check is not None and done.returncode != check:
            raise AssertionError(
                f"{' '.join(done.args[7:])}: exit code {done.returncode}, expected {check}\n"
                f"stdout: {done.stdout[-2000:]!r}\nstderr: {done.stderr.decode(errors='replace')[-4000:]}"
            )
        return done

    def start(
        self,
        *arguments: str | os.PathLike[str],
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start it, with pipes for its output; use it as ``with crungo.start(...) as process``."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(self.argv(*arguments), stdin=stdin, env=self.environ(env), cwd=self.cwd, **options)

    def terminal(
        self,
        *arguments: str | os.PathLike[str],
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
    ) -> Terminal:
        """Start it on a terminal; use it as ``with crungo.terminal(...) as terminal``."""
        environment = {**self.env, **(env or {})}
        return Terminal(self.argv(*arguments), columns=columns, rows=rows, env=environment, cwd=self.cwd)
