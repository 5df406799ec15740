"""Registries and images that are broken or lie: the right image, or a clear error and a store as it was before."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from crungo.errors import CrungoError, DigestMismatch, ImageError, LayerError, RegistryError
from crungo.image.store import Store
from crungo.registry import download
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from crungo.registry.progress import LayerRetry, ProgressEvent
from crungo.registry.pull import PullLimits
from crungo.registry.retry import RetryPolicy
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image, sha256
from tests.support.pyunpacker import Liar, PyUnpacker
from tests.unit.test_pull import QUICK, get, layered, leftovers, make_store, noise

pytestmark = pytest.mark.anyio

Faults = Callable[[Request], Fault | None]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient(hosts=Hosts(), certificates=(), retry=QUICK) as client:
        yield client


def tree(path: Path) -> dict[str, bytes]:
    """All files of a store, apart from its own lock."""
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.name != "lock"}


def on(source: Source, fault: Callable[[Request], Fault | None], layer: int = 0) -> Faults:
    digest = source.document["layers"][layer]["digest"]
    return lambda request: fault(request) if request.path.endswith(digest) else None


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_breaks_are_continued(
    reset: bool, chunked: bool, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(500_000)
    text = registry.add(source)
    registry.faults = on(
        source, lambda request: Fault(after=150_000, reset=reset, chunked=chunked) if request.number < 3 else None
    )
    events: list[ProgressEvent] = []
    store = make_store(tmp_path)
    image = await get(text, store, client, progress=events.append)
    assert store.image(text) == image
    assert sum(isinstance(event, LayerRetry) for event in events) == 3
    size = source.document["layers"][0]["size"]
    sent = registry.bytes_of(source.document["layers"][0]["digest"])
    # A reset may drop what was sent and not yet read; an orderly end loses nothing.
    assert sent == size if not reset else size <= sent < 2 * size


async def test_gives_up_after_retries(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(500_000, 10)
    text = registry.add(source)
    registry.faults = on(source, lambda request: Fault(after=10 if request.number else 100_000, pause=0.1))
    store = make_store(tmp_path)
    with pytest.raises(RegistryError):
        await get(text, store, client)
    assert len(registry.requests(source.document["layers"][0]["digest"])) == 4
    assert store.images() == []
    registry.faults = lambda _: None
    registry.sent.clear()
    await get(text, store, client)
    size = source.document["layers"][0]["size"]
    assert registry.bytes_of(source.document["layers"][0]["digest"]) == size - 100_030
    assert registry.bytes_of(source.document["layers"][1]["digest"]) == 0
    assert leftovers(store) == []


@pytest.mark.parametrize("status", [429, 503])
async def test_tries_do_not_multiply(
    status: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(1000)
    text = registry.add(source)
    registry.faults = on(source, lambda _: Fault(status=status))
    with pytest.raises(RegistryError, match=str(status)):
        await get(text, make_store(tmp_path), client)
    assert len(registry.requests(source.document["layers"][0]["digest"])) == 1 + QUICK.retries


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_transient_answers(status: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(1000)
    text = registry.add(source)
    registry.faults = lambda request: Fault(status=status) if request.number < 2 else None
    await get(text, make_store(tmp_path), client)


async def test_ranges_ignored_on_resume(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(500_000)
    text = registry.add(source)
    registry.faults = on(
        source, lambda request: Fault(after=200_000 if request.number == 0 else None, ignore_range=True)
    )
    await get(text, make_store(tmp_path), client)


@pytest.mark.parametrize("size", [20_000, 2_000_000])
async def test_an_unpacker_does_not_vouch_for_the_blob(
    size: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """It reads bytes that were not verified yet: they might have taken it over."""
    source = layered(size)
    text = registry.add(source)
    registry.faults = on(source, lambda _: Fault(corrupt=15_000))
    [diff_id] = json.loads(source.blobs[source.document["config"]["digest"]])["rootfs"]["diff_ids"]
    store = make_store(tmp_path)
    with pytest.raises(DigestMismatch, match="is not what its digest says"):
        await get(text, store, client, unpacker=Liar(diff_id))
    assert store.layers.names() == store.blobs.names() == []


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SEGMENT", 100_000)
    monkeypatch.setattr(download, "_FIRST_SEGMENT", 50_000)
    monkeypatch.setattr(download, "_FAST", 1e12)


@pytest.mark.usefixtures("small_segments")
async def test_large_layer_in_ranges(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(2_000_000)
    text = registry.add(source)
    registry.faults = on(source, lambda _: Fault(pause=0.02))
    unpacker = PyUnpacker()
    image = await get(text, make_store(tmp_path), client, unpacker=unpacker)
    assert image.digest == source.digest
    layer = source.document["layers"][0]
    ranges = sorted(sent.request.range or (0, 0) for sent in registry.requests(layer["digest"]))
    assert len(ranges) > 15
    assert ranges[0] == (0, 50_000)
    assert registry.bytes_of(layer["digest"]) == layer["size"]
    assert len(unpacker.made[0].announced) > 5


@pytest.mark.usefixtures("small_segments")
async def test_segments_shrink_on_a_slow_line(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_LAST_SEGMENT", 10_000)
    source = layered(1_200_000)
    layer = source.document["layers"][0]
    text = registry.add(source)
    sizes = {}
    for slow in (0.0, 1e12):
        monkeypatch.setattr(download, "_SLOW", slow)
        registry.sent.clear()
        await get(text, make_store(tmp_path / str(slow)), client)
        ranges = sorted(sent.request.range or (0, 0) for sent in registry.requests(layer["digest"]))
        sizes[slow] = [(end or layer["size"]) - start for start, end in ranges]
        assert sum(sizes[slow]) == layer["size"]
    assert min(sizes[0.0][1:-1]) == max(sizes[0.0][1:-1]) == 100_000
    assert max(sizes[1e12][-4:]) < 15_000 < sizes[1e12][1]


@pytest.mark.usefixtures("small_segments")
async def test_segments_shrink_at_the_end_of_the_pull_and_not_of_each_layer(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_LAST_SEGMENT", 10_000)
    monkeypatch.setattr(download, "_SLOW", 1e12)
    source = layered(400_000, 1_200_000)
    text = registry.add(source)
    store = make_store(tmp_path)
    await get(text, store, client, limits=PullLimits(layers=1))
    smallest = []
    for layer in source.document["layers"]:
        ranges = sorted(sent.request.range or (0, 0) for sent in registry.requests(layer["digest"]))
        smallest.append(min((end or layer["size"]) - start for start, end in ranges))
    assert smallest[0] < 15_000
    assert smallest[1] >= 400_000 // 16, "the larger one is the first"


@pytest.mark.usefixtures("small_segments")
async def test_large_layer_without_ranges(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(2_000_000)
    text = registry.add(source)
    registry.faults = on(source, lambda _: Fault(ignore_range=True))
    await get(text, make_store(tmp_path), client)
    assert len(registry.requests(source.document["layers"][0]["digest"])) == 2


@pytest.mark.usefixtures("small_segments")
async def test_further_connections_may_be_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    source = layered(2_000_000)
    text = registry.add(source)
    served = threading.Semaphore(1)

    def fault(request: Request) -> Fault | None:
        # One connection at a time is served: the first one's, that of the segments in order.
        if not served.acquire(blocking=False):
            return Fault(status=429)
        threading.Timer(0.02, served.release).start()
        return Fault(pause=0.03)

    registry.faults = on(source, fault)
    often = RetryPolicy(retries=50, delay=0.01)
    async with RegistryClient(hosts=Hosts(), certificates=(), retry=often) as client:
        image = await get(text, make_store(tmp_path), client, retry=often)
    assert image.digest == source.digest


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("seed", range(12))
async def test_random_faults(seed: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    """The right image, or an error and nothing visible; and in the end the right image, fetching what was missing."""
    dice = random.Random(seed)
    source = layered(300_000, 40_000, 700_000, 10, seed=seed)
    text = registry.add(source)
    lock = threading.Lock()

    def fault(request: Request) -> Fault | None:
        with lock:
            kind = dice.randrange(12)
            after = dice.randrange(1, 200_000)
        return {
            0: Fault(after=after),
            1: Fault(after=after, reset=True),
            2: Fault(status=dice.choice([429, 500, 503])),
            3: Fault(corrupt=dice.randrange(300)),
            4: Fault(ignore_range=True),
            5: Fault(chunked=True, after=after),
        }.get(kind)

    registry.faults = fault
    store = make_store(tmp_path)
    for _ in range(2):
        try:
            image = await get(text, store, client)
        except CrungoError:
            assert store.images() == []
        else:
            assert image.digest == source.digest
    registry.faults = lambda _: None
    image = await get(text, store, client)
    assert image.digest == source.digest
    assert [os.listdir(f"{path}/d") for path in image.layers] == [["0"], ["1"], ["2"], ["3"]]
    assert leftovers(store) == []


async def test_corruption_on_the_way_passes(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(100_000)
    text = registry.add(source)
    registry.faults = on(source, lambda request: Fault(corrupt=50_000) if request.number == 0 else None)
    image = await get(text, make_store(tmp_path), client)
    assert image.digest == source.digest


async def test_wrong_part_of_an_earlier_pull(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(400_000)
    text = registry.add(source)
    store = make_store(tmp_path)
    registry.faults = on(
        source, lambda request: Fault(after=100_000, corrupt=500) if request.number == 0 else Fault(status=403)
    )
    with pytest.raises(RegistryError):
        await get(text, store, client)
    registry.faults = lambda _: None
    assert (await get(text, store, client)).digest == source.digest
    assert leftovers(store) == []


def lie(change: Callable[[dict[str, Any]], None]) -> Source:
    return make_image([Layer().file("a", noise(5000))], change_manifest=change)


def wrong_digest(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["size"] += 0
    manifest["layers"][0]["digest"] = "sha256:" + "1" * 64


def smaller(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["size"] -= 1


def larger(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["size"] += 1


def wrong_diff_id(config: dict[str, Any]) -> None:
    config["rootfs"]["diff_ids"][0] = "sha256:" + "2" * 64


def missing_diff_id(config: dict[str, Any]) -> None:
    config["rootfs"]["diff_ids"].pop()


BAD: dict[str, tuple[Source, type[CrungoError], str]] = {
    "smaller": (lie(smaller), DigestMismatch, "bytes, the manifest says|more than the"),
    "larger": (lie(larger), DigestMismatch, "bytes, the manifest says"),
    "wrong diff id": (
        make_image([Layer().file("a", noise(5000))], change_config=wrong_diff_id),
        DigestMismatch,
        "unpacks to",
    ),
    "missing diff id": (
        make_image([Layer().file("a")], change_config=missing_diff_id),
        ImageError,
        "has 1 layers, its configuration 0",
    ),
    "no archive": (make_image([noise(5000)]), LayerError, "layer"),
    "truncated gzip": (
        make_image([gzip.compress(Layer().file("a", noise(5000)).data())[:-500]], compression="none"),
        LayerError,
        "layer",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_image_leaves_store_as_it_was(
    name: str, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source, kind, message = BAD[name]
    store = make_store(tmp_path)
    await get(registry.add(layered(100), tag="good"), store, client)
    before = tree(tmp_path)
    with pytest.raises(kind, match=message):
        await get(registry.add(source), store, client)
    assert tree(tmp_path) == before
    assert leftovers(store) == []


async def test_wrong_content_leaves_store_as_it_was(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(200_000, 5000)
    text = registry.add(source)
    digest = source.document["layers"][1]["digest"]
    registry.blobs[digest] = bytes(len(registry.blobs[digest]))
    store = make_store(tmp_path)
    with pytest.raises(DigestMismatch, match="is not what its digest says"):
        await get(text, store, client)
    assert {name for name in tree(tmp_path) if "blobs" in name or "layers" in name or "ingest" in name} == set()
    assert len(registry.requests(digest)) == 2


async def test_unpacked_size_is_bounded(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    text = registry.add(make_image([Layer().file("zeros", bytes(1_000_000))]))
    with pytest.raises(LayerError, match="larger than allowed"):
        await get(text, make_store(tmp_path), client, limits=PullLimits(layer_size=500_000))


async def test_wrong_config(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(10)
    text = registry.add(source)
    config = source.document["config"]
    registry.blobs[config["digest"]] = b"{}" + b" " * (config["size"] - 2)
    with pytest.raises(DigestMismatch, match="configuration is not what its digest"):
        await get(text, make_store(tmp_path), client)
    registry.blobs[config["digest"]] = bytes(config["size"] + 1)
    with pytest.raises(DigestMismatch, match="larger than the manifest says"):
        await get(text, make_store(tmp_path), client)


async def test_index_within_indexes(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": layered(1).media_type, "digest": sha256(b""), "size": 1}
    for depth in range(6):
        body = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        entry = {"mediaType": kind, "digest": registry.put("image", str(depth), kind, body), "size": len(body)}
    with pytest.raises(ImageError, match="nested more than 4 deep"):
        await get(f"{registry.address}/image:5", make_store(tmp_path), client)


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
