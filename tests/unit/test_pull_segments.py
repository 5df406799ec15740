"""Large layers: fetched in ranges over several connections, where the registry lets them be."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import anyio
import pytest

from crungo.errors import CrungoError
from crungo.registry import download, line
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from crungo.registry.pull import PullLimits
from crungo.registry.retry import RetryPolicy
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.pyunpacker import PyUnpacker
from tests.support.smallpulls import get, layered, leftovers, make_store, on

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_FIRST_SEGMENT", 50_000)
    monkeypatch.setattr(line, "_SHORTEST_SEGMENT", 100_000)
    monkeypatch.setattr(line, "_LONGEST_SEGMENT", 100_000)
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
async def test_a_freed_connection_helps_another_blob(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """Not only once that has a segment behind it, which may last: the first answer ends when a second one is asked."""
    source = layered(60_000, 2_000_000)
    text = registry.add(source)
    large = source.document["layers"][1]["digest"]
    helped = threading.Event()

    def fault(request: Request) -> Fault | None:
        if not request.path.endswith(large):
            return None
        if request.range == (0, 50_000):
            return Fault(after=1000, hold=helped)
        helped.set()
        return None

    registry.faults = fault
    with anyio.fail_after(20):
        await get(text, make_store(tmp_path), client, limits=PullLimits(layers=2, connections=2))
    assert helped.is_set()


@pytest.mark.usefixtures("small_segments")
async def test_first_segments_do_not_end_at_once(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(300_000, 310_000, 320_000)
    text = registry.add(source)
    await get(text, make_store(tmp_path), client, limits=PullLimits(layers=3))
    layers = source.document["layers"]
    firsts = {min(sent.request.range or (0, 0) for sent in registry.requests(layer["digest"])) for layer in layers}
    assert firsts == {(0, 50_000), (0, 56_250), (0, 62_500)}


@pytest.mark.usefixtures("small_segments")
async def test_large_layer_without_ranges(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(2_000_000)
    text = registry.add(source)
    registry.faults = on(source, lambda _: Fault(ignore_range=True))
    await get(text, make_store(tmp_path), client)
    assert len(registry.requests(source.document["layers"][0]["digest"])) == 2


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("status", [206, 400, 416, 501])
async def test_large_layer_of_a_server_that_refuses_ranges(
    status: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """Others do not ask for any, so that nobody has noticed."""
    source = layered(2_000_000)
    text = registry.add(source)
    registry.faults = on(source, lambda request: Fault(status=status) if request.range else None)
    image = await get(text, make_store(tmp_path), client)
    assert image.digest == source.digest
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
