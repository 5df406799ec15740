"""A registry at the far end of a slow link (``link.c``), and how to run a command at its near end."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.common import compiled
from tests.support.registry import TOOLS

__all__ = ["SlowRegistry", "slow_registry"]

ADDRESS = "10.99.0.2:5000"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRegistry:
    """``prefix`` starts a command where ``address`` can be reached; ``env`` tells crungo to speak plain HTTP to it."""

    address: str
    prefix: list[str]
    env: dict[str, str]


@contextmanager
def slow_registry(folder: Path, storage: Path, *, megabits: int, milliseconds: int) -> Iterator[SlowRegistry]:
    """Serve an existing ``storage`` through the link, for as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    config, trust = folder / "config.yml", folder / "registries.conf"
    settings = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"addr": ADDRESS},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    trust.write_text(f'[[registry]]\nlocation = "{ADDRESS}"\ninsecure = true\n')
    link = [str(compiled("link")), str(megabits), str(milliseconds)]
    command = ["setpriv", "--pdeathsig", "KILL", "--", *link, str(TOOLS / "docker-registry"), "serve", str(config)]
    with subprocess.Popen(
        ["unshare", "--net", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if b"listening on" in line:
                    break
            else:
                raise RuntimeError(f"the registry behind the link did not start:\n{b''.join(said).decode()}")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield SlowRegistry(
                address=ADDRESS,
                prefix=["nsenter", "--net", "--target", str(process.pid), "--"],
                env={"CONTAINERS_REGISTRIES_CONF": str(trust), "CONTAINERS_REGISTRIES_CONF_DIR": str(folder / "none")},
            )
        finally:
            process.kill()  # and, by PR_SET_PDEATHSIG, the registry
