"""Pulls with the real unpacker, in this process or in others, and what must be true of a store at any moment.

Run as a program, it is the starter of pulls that a test kills: everything is imported once, each pull is a fork.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crungo.errors import CrungoError
from crungo.image.reference import Reference
from crungo.image.store import Image, Store
from crungo.image.trees import entries
from crungo.paths import Roots
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from crungo.registry.pull import PullLimits, pull
from crungo.registry.retry import RetryPolicy
from crungo.registry.wire import Timeouts
from crungo.runtime.requests import SpawnerProcess
from crungo.runtime.unpacking import SpawnerUnpacker

__all__ = ["Pulls", "Starter", "missing", "places", "spawner", "unverified"]

ROOT = Path(__file__).resolve().parents[2]
QUICK = RetryPolicy(retries=3, delay=0.01, retry_after_cap=0.01)


@asynccontextmanager
async def spawner(roots: Roots) -> AsyncIterator[SpawnerProcess]:
    """A spawner, ended and reaped on leaving."""
    process = SpawnerProcess.start(roots)
    try:
        yield process
    finally:
        process.end_requests()
        process.reap()


class Pulls:
    """Pulls by one spawner; each has its own client unless it is given one."""

    def __init__(self, process: SpawnerProcess, *, timeouts: Timeouts | None = None) -> None:
        self.unpacker = SpawnerUnpacker(process)
        self._process = process
        self._timeouts = timeouts

    def with_timeouts(self, timeouts: Timeouts) -> Pulls:
        """The same, more or less patient."""
        return Pulls(self._process, timeouts=timeouts)

    async def __call__(
        self,
        text: str,
        store: Store,
        *,
        retry: RetryPolicy = QUICK,
        limits: PullLimits | None = None,
        client: RegistryClient | None = None,
    ) -> Image:
        if client is not None:
            return await pull(
                Reference.parse(text), store=store, client=client, unpacker=self.unpacker, retry=retry, limits=limits
            )
        async with RegistryClient(hosts=Hosts(), certificates=(), retry=retry, timeouts=self._timeouts) as own:
            return await self(text, store, retry=retry, limits=limits, client=own)


def unverified(store: Store) -> list[str]:
    """What is visible in a store and is not what it says: blobs by their digest, layers by their record.

    A layer's content is for ``crungo.image.check`` to compare.
    """
    wrong = []
    for digest in store.blobs.names():
        content = Path(store.layout.blob(digest)).read_bytes()
        if digest != f"sha256:{hashlib.sha256(content).hexdigest()}":
            wrong.append(f"blob {digest}")
    records = {digest: store.layers.record(digest) for digest in store.layers.names()}
    wrong += [
        f"layer {digest}"
        for digest, record in records.items()
        if record is None or not store.layers.trusted(digest, record.diff_id)
    ]
    for image in store.images():
        wrong += [f"layer {digest} of {image.digest}" for digest in store.untrusted(image)]
        wrong += [f"blob {x.digest}" for x in image.manifest.layers if not store.blobs.has(x.digest, x.size)]
    return wrong


def missing(store: Store, digest: str, content: bytes) -> int:
    """How many bytes of a blob a pull has to fetch: all but what the store has of it, if that is right."""
    if store.blobs.has(digest, len(content)):
        return 0
    try:
        part = Path(store.layout.part(digest)).read_bytes()
        journal = Path(store.layout.part(digest) + ".extents").read_bytes()
    except FileNotFoundError:
        return len(content)
    numbers = [int.from_bytes(journal[at : at + 8], "little") for at in range(0, len(journal), 8)]
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    if any(part[start:end] != content[start:end] for start, end in extents):
        return len(content) - sum(end - start for start, end in extents) + len(content)  # found out, and all again
    return len(content) - sum(end - start for start, end in extents)


def places(path: Path) -> dict[str, tuple[object, ...]]:
    """All that a store holds, apart from its lock and times."""
    found: dict[str, tuple[object, ...]] = {}
    if not path.exists():
        return found
    for entry in entries(str(path)):
        name = os.fsdecode(b"/".join(entry.path))
        status = entry.status
        content = b""
        if status.st_mode & 0o170000 == 0o100000:
            content = Path(path, name).read_bytes()
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev, content)
    return {name: value for name, value in found.items() if name not in ("", "lock")}


class Starter:
    """A process that starts pulls, one at a time; a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.pulling"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._read() == {"ready": True}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def start(self, reference: str, roots: Roots) -> int:
        """Begin a pull; the process that makes it."""
        assert self._process is not None
        assert self._process.stdin is not None
        words = {"reference": reference, "root": roots.root, "run": roots.run}
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._read()["pid"])

    def ended(self, seconds: float) -> bool:
        """Wait so long for the end of the pull."""
        assert self._process is not None
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def end(self) -> tuple[int, str]:
        """Wait for the end of the pull: its exit code, negative for a signal, and what it said."""
        said = self._read()
        return int(said["code"]), str(said["error"])

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _serve() -> None:
    """Pulls as they are asked for on stdin; unbuffered, because ``select`` looks at the descriptor itself."""
    _say(ready=True)
    for line in iter(sys.stdin.readline, ""):
        wanted = json.loads(line)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = asyncio.run(_pull(wanted["reference"], Roots(root=wanted["root"], run=wanted["run"]), writer))
            except Exception:
                os.write(writer, traceback.format_exc()[-4000:].encode())
            finally:
                os._exit(code)
        os.close(writer)
        _say(pid=pid)
        _, status = os.waitpid(pid, 0)
        with open(reader, "rb") as file:
            said = file.read().decode(errors="replace")
        _say(code=os.waitstatus_to_exitcode(status), error=said)


async def _pull(reference: str, roots: Roots, errors: int) -> int:
    async with spawner(roots) as process:
        try:
            await Pulls(process)(reference, Store(roots))
        except CrungoError as error:
            os.write(errors, error.message.encode()[:4000])
            return 125
    return 0


def _say(**words: object) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve()
