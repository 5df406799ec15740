"""Pulls of several processes, some of which are killed: nothing is fetched twice, nobody waits in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from crungo.image.store import Store
from crungo.registry.client import RegistryClient
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.smallpulls import get, layered, leftovers, make_store, on

pytestmark = pytest.mark.anyio

KILLED = """
import sys, anyio
from crungo.image.reference import Reference
from crungo.image.layers import Unpacked
from crungo.image.store import Store
from crungo.paths import Roots
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from crungo.registry.pull import pull
from tests.support.pyunpacker import PyUnpacker

async def main(text, root):
    async with RegistryClient(hosts=Hosts(), certificates=()) as client:
        store = Store(Roots(root=root, run=root + "-run"))
        await pull(Reference.parse(text), store=store, client=client, unpacker=PyUnpacker())

anyio.run(main, *sys.argv[1:])
"""


class Puller:
    """A process that pulls; it does not outlive its block."""

    def __init__(self, text: str, store: Store) -> None:
        command = [sys.executable, "-c", KILLED, text, store.layout.root]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)

    def __enter__(self) -> Puller:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds while the process runs; another process's progress has no event."""

        def wait() -> None:
            deadline = time.monotonic() + 30
            while not condition():
                assert self.process.poll() is None, self.process.communicate()[1].decode()
                assert time.monotonic() < deadline
                time.sleep(0.01)

        await anyio.to_thread.run_sync(wait)

    async def end(self) -> int:
        _, errors = await anyio.to_thread.run_sync(self.process.communicate)
        assert self.process.returncode in (0, -signal.SIGKILL), errors.decode()
        return self.process.returncode


async def test_killed_and_continued(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(1_000_000, 50_000)
    text = registry.add(source)
    held, go_on = threading.Event(), threading.Event()
    large, small = (layer["digest"] for layer in source.document["layers"])

    def fault(request: Request) -> Fault | None:
        return Fault(after=600_000, hold=_Notify(held, go_on)) if request.path.endswith(large) else None

    registry.faults = fault
    store = make_store(tmp_path)
    journal = Path(store.layout.part(large) + ".extents")
    with Puller(text, store) as puller:
        await puller.until(held.is_set)
        await puller.until(lambda: os.path.exists(store.layout.blob(small)))
        await puller.until(lambda: journal.stat().st_size > 0)
        puller.process.kill()
        assert await puller.end() == -signal.SIGKILL
    go_on.set()

    assert store.images() == []
    assert not await anyio.Path(store.layout.blob(large)).exists()
    kept = (await anyio.Path(journal).read_bytes())[8:16]
    registry.faults = lambda _: None
    registry.sent.clear()
    image = await get(text, store, client)
    assert image.digest == source.digest
    size = source.document["layers"][0]["size"]
    assert registry.bytes_of(large) == size - int.from_bytes(kept, "little") < size
    assert registry.bytes_of(small) == 0
    assert leftovers(store) == []


async def test_two_processes_download_once(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(400_000, 300_000, 10)
    text = registry.add(source)
    registry.faults = lambda request: Fault(pause=0.05) if "blobs" in request.path else None
    store = make_store(tmp_path)
    with Puller(text, store) as one, Puller(text, store) as two:
        assert [await one.end(), await two.end()] == [0, 0]
    for layer in source.document["layers"]:
        assert registry.bytes_of(layer["digest"]) == layer["size"]
    assert store.image(text).digest == source.digest
    assert leftovers(store) == []


async def test_waiting_for_a_killed_process(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(400_000)
    text = registry.add(source)
    held, go_on = threading.Event(), threading.Event()
    registry.faults = on(
        source, lambda request: Fault(after=100_000, hold=_Notify(held, go_on)) if request.number == 0 else None
    )
    store = make_store(tmp_path)
    with Puller(text, store) as puller:
        await puller.until(held.is_set)
        async with anyio.create_task_group() as group:
            group.start_soon(get, text, store, client)
            await anyio.sleep(0.2)
            assert len(registry.requests(source.document["layers"][0]["digest"])) == 1
            puller.process.kill()
    go_on.set()
    assert store.image(text).digest == source.digest


class _Notify(threading.Event):
    """Waiting for it tells ``reached``; it is over when ``over`` is set."""

    def __init__(self, reached: threading.Event, over: threading.Event) -> None:
        super().__init__()
        self._reached = reached
        self._over = over

    def wait(self, timeout: float | None = None) -> bool:
        self._reached.set()
        return self._over.wait(timeout)
