"""A real registry (Debian's docker-registry) on loopback, for as long as a ``with`` block lasts.

It listens on a port that the kernel chooses, keeps everything under one folder, and cannot outlive its starter: the
kernel kills it when that thread ends in any way.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

__all__ = ["ROOT", "TOOLS", "Registry"]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "build" / "tools" / "bin"  # filled by scripts/host_packages.py


class Registry:
    """``address`` is host:port once the block is entered; ``log`` holds what the registry says.

    ``settings`` are merged into its configuration's top level (``auth``, ``proxy``, …).
    """

    def __init__(self, folder: Path, *, program: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.log = folder / "registry.log"
        self._program = program or TOOLS / "docker-registry"
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._port: int | None = None

    @property
    def address(self) -> str:
        assert self._port is not None, "the registry is not running"
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yml"
        config.write_text(json.dumps(self._config(), indent=2))  # JSON is YAML
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(self._program), "serve", str(config)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stderr is not None
        try:
            self._port = self._await_port(self._process.stderr)
        except BaseException:
            self._end()
            raise
        self._reader = threading.Thread(target=self._drain, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _config(self) -> dict[str, Any]:
        return {
            "version": 0.1,
            "log": {"level": "info", "formatter": "text", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "storage")},
                "delete": {"enabled": True},
                "cache": {"blobdescriptor": "inmemory"},
            },
            "http": {"addr": "127.0.0.1:0"},
            **self._settings,
        }

    def _await_port(self, stderr: IO[bytes]) -> int:
        with self.log.open("wb") as log:
            for line in stderr:
                log.write(line)
                if found := re.search(rb"listening on 127\.0\.0\.1:(\d+)", line):
                    return int(found[1])
        raise RuntimeError(f"the registry did not start:\n{self.log.read_text(errors='replace')}")

    def _drain(self, stderr: IO[bytes]) -> None:
        with self.log.open("ab", buffering=0) as log:
            for line in stderr:
                log.write(line)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._process, self._reader, self._port = None, None, None
