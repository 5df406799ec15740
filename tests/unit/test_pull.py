"""Pulling from a registry on loopback: what is fetched, what is kept, what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from crungo.errors import DigestMismatch, HostError, ImageError, ImageNotFound, ImageNotKnown, RegistryError
from crungo.image.reference import Reference
from crungo.image.store import Image, Store
from crungo.registry.client import RegistryClient
from crungo.registry.progress import ImageDone, ImageResolved, LayerDone, LayerProgress, ProgressEvent
from crungo.registry.pull import PullLimits
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.image import Layer, make_image
from tests.support.pyunpacker import Liar, PyUnpacker
from tests.support.smallpulls import blob_names, content, get, layered, leftovers, make_store, noise

if TYPE_CHECKING:
    from crungo.config import PullPolicy

pytestmark = pytest.mark.anyio


async def test_whole_image(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(1000, 200_000, 30)
    text = registry.add(source)
    store = make_store(tmp_path)
    events: list[ProgressEvent] = []
    image = await get(text, store, client, progress=events.append)

    assert image.digest == image.target == source.digest
    assert image.id == source.document["config"]["digest"]
    assert image.references == (Reference.parse(text),)
    assert image.config.cmd == ("sh",)
    assert image.created is not None
    assert [content(image, n) for n in range(3)] == [
        noise(1000, 0),
        noise(200_000, 1),
        noise(30, 2),
    ]
    assert blob_names(store) == {*source.blobs, source.digest}
    assert leftovers(store) == []
    assert store.images() == [image] == [store.image(text)]
    assert store.image(image.id) == store.image(image.id[7:19]) == image
    assert store.untrusted(image) == ()

    resolved = [event for event in events if isinstance(event, ImageResolved)]
    assert [layer.digest for layer in resolved[0].layers] == [e["digest"] for e in source.document["layers"]]
    done = {event.digest for event in events if isinstance(event, LayerDone) and not event.cached}
    assert done == {entry["digest"] for entry in source.document["layers"]}
    assert isinstance(events[-1], ImageDone)
    assert events[-1].changed
    assert {event.phase for event in events if isinstance(event, LayerProgress)} >= {"downloading", "extracting"}


async def test_unchanged_costs_one_head(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    text = registry.add(layered(1000))
    store = make_store(tmp_path)
    first = await get(text, store, client)
    registry.sent.clear()
    assert await get(text, store, client) == first
    assert [(sent.request.method, sent.status) for sent in registry.sent] == [("HEAD", 200)]
    registry.sent.clear()
    assert await get(text, store, client, policy="missing") == first
    assert await get(text, store, client, policy="never") == first
    by_digest = f"{text}@{first.digest}"
    assert (await get(by_digest, store, client)).id == first.id
    assert registry.sent == []


def test_httpx_is_imported_for_what_is_downloaded(registry: FakeRegistry, tmp_path: Path) -> None:
    program = """
import anyio, pathlib, sys
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from tests.support.smallpulls import get, make_store

async def main():
    async with RegistryClient(hosts=Hosts(), certificates=()) as client:
        await get(sys.argv[1], make_store(pathlib.Path(sys.argv[2])), client)

anyio.run(main)
print("httpx" in sys.modules)
"""
    command = [sys.executable, "-c", program, registry.add(layered(1000)), str(tmp_path)]
    for changed in (True, False):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        assert done.stdout == f"{changed}\n"
    assert [sent.request.method for sent in registry.sent] == ["GET", "GET", "GET", "HEAD"]


async def test_registry_without_head(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    text = registry.add(layered(1000))
    registry.head = False
    store = make_store(tmp_path)
    await get(text, store, client)
    registry.sent.clear()
    await get(text, store, client)
    assert [sent.request.method for sent in registry.sent] == ["HEAD", "GET"]


async def test_moved_tag_shares_layers(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    old = await get(registry.add(layered(5000, 10)), store, client)
    changed = layered(5000, 20)
    registry.sent.clear()
    new = await get(registry.add(changed), store, client)
    assert new.id != old.id
    assert new.layers[0] == old.layers[0]
    assert registry.bytes_of(changed.document["layers"][0]["digest"]) == 0
    assert [image.references for image in store.images() if image.id == old.id] == [()]
    assert store.image(old.id).references == ()


async def test_policies_without_image(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(ImageNotKnown):
        await get(f"{registry.address}/image", store, client, policy="never")
    assert registry.sent == []
    with pytest.raises(ImageNotFound):
        await get(f"{registry.address}/image", store, client, policy="missing")
    assert store.images() == []


async def test_newer_without_registry(client: RegistryClient, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with FakeRegistry() as registry:
        text = registry.add(layered(10))
        image = await get(text, store, client)
    assert await get(text, store, client, policy="newer") == image
    with pytest.raises(RegistryError):
        await get(text, store, client, policy="always")


async def test_layers_are_pulled_at_once(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    text = registry.add(layered(*[1_100_000] * 8))
    registry.faults = lambda request: Fault(pause=0.005) if "blobs" in request.path else None
    unpacker = PyUnpacker()
    await get(text, make_store(tmp_path), client, unpacker=unpacker, limits=PullLimits(layers=3))
    assert unpacker.most == 3
    assert unpacker.running == 0


async def test_layers_do_not_wait_for_the_configuration(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(1000, 2_000_000)
    text = registry.add(source)
    others, asked = threading.Barrier(3), []

    def together(request: Request) -> Fault | None:
        if "blobs" in request.path:
            others.wait(30)  # fails unless all three blobs are asked for
            asked.append(request.path)
        return None

    registry.faults = together
    image = await get(text, make_store(tmp_path), client)
    assert len(set(asked)) == 3
    assert [content(image, n) for n in range(2)] == [noise(1000, 0), noise(2_000_000, 1)]


async def test_a_bad_configuration_ends_the_layers_beside_it(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(2_000_000, change_config=lambda config: config["rootfs"].update(diff_ids=[]))
    text = registry.add(source)
    layer = source.document["layers"][0]["digest"]
    registry.faults = lambda request: Fault(pause=0.05) if layer in request.path else None
    store, unpacker = make_store(tmp_path), PyUnpacker()
    with pytest.raises(ImageError, match="has 1 layers, its configuration 0"):
        await get(text, store, client, unpacker=unpacker)
    assert unpacker.running == 0
    assert leftovers(store) == []


async def test_unpacking_starts_with_first_bytes(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(1_200_000)
    text = registry.add(source)
    registry.faults = lambda request: (
        Fault(pause=0.02) if source.document["layers"][0]["digest"] in request.path else None
    )
    unpacker = PyUnpacker()
    await get(text, make_store(tmp_path), client, unpacker=unpacker)
    assert len(unpacker.made[0].announced) > 2


async def test_small_layers_are_unpacked_when_they_are_here(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    text = registry.add(layered(1_000_000))
    unpacker = PyUnpacker()
    await get(text, make_store(tmp_path), client, unpacker=unpacker)
    assert unpacker.made[0].announced == []


async def test_same_layer_twice(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    one, two = Layer().file("a", b"1").data(), Layer().file("b", b"2").data()
    text = registry.add(make_image([one, two, one]))
    image = await get(text, make_store(tmp_path), client)
    assert [os.listdir(path) for path in image.layers] == [["b"], ["a"]]


async def test_one_layer_of_two_diff_ids(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    one, two = Layer().file("a", b"1").data(), Layer().file("b", b"2").data()

    def contradict(config: dict[str, Any]) -> None:
        config["rootfs"]["diff_ids"][2] = config["rootfs"]["diff_ids"][1]

    text = registry.add(make_image([one, two, one], change_config=contradict))
    with pytest.raises(DigestMismatch, match="unpacks to"):
        await get(text, make_store(tmp_path), client)


async def test_same_diff_id_from_other_blob(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    archive = Layer().file("a", b"1" * 5000).data()
    store, unpacker = make_store(tmp_path), PyUnpacker()
    first = await get(registry.add(make_image([archive]), tag="gzip"), store, client, unpacker=unpacker)
    plain = make_image([archive], compression="none")
    second = await get(registry.add(plain, tag="plain"), store, client, unpacker=unpacker)
    assert first.config.diff_ids == second.config.diff_ids
    assert first.layers != second.layers
    assert set(plain.blobs) <= blob_names(store)
    for tag in ("gzip", "plain"):
        await get(f"{registry.address}/image:{tag}", store, client, unpacker=unpacker)
    assert len(unpacker.made) == 2
    assert leftovers(store) == []


async def test_diff_id_of_another_layer(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    """A configuration may name the diff id of any layer that is here: the blob is held against it all the same."""
    store = make_store(tmp_path)
    good = layered(100, 200)
    await get(registry.add(good, tag="good"), store, client)
    ids = json.loads(good.blobs[good.document["config"]["digest"]])["rootfs"]["diff_ids"]
    for archive in (Layer().file("evil"), Layer().directory("d").file("d/0", noise(100, 0))):
        liar = make_image([archive], change_config=lambda config: config["rootfs"].update(diff_ids=ids[1:]))
        with pytest.raises(DigestMismatch, match="unpacks to"):
            await get(registry.add(liar, tag="liar"), store, client)
    assert [image.digest for image in store.images()] == [good.digest]
    assert leftovers(store) == []


@pytest.mark.parametrize("policy", ["always", "never"])
async def test_an_unpacker_lies_of_no_layer_but_its_own(
    policy: PullPolicy, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """A blob that takes its unpacker over may claim the diff id of another, which a second image has in truth."""
    good = layered(5000)
    [diff_id] = diff_ids = json.loads(good.blobs[good.document["config"]["digest"]])["rootfs"]["diff_ids"]
    evil = make_image([Layer().file("evil")], change_config=lambda config: config["rootfs"].update(diff_ids=diff_ids))
    before, text = make_store(tmp_path, boot="one"), registry.add(good, tag="good")
    await get(registry.add(evil, tag="evil"), before, client, unpacker=Liar(diff_id))
    image = await get(text, before, client)
    assert content(image, 0) == noise(5000, 0)
    # Also after a restart, when both are unpacked again.
    after = make_store(tmp_path, boot="two")
    await get(f"{registry.address}/image:evil", after, client, policy=policy, unpacker=Liar(diff_id))
    assert after.untrusted(image) == (image.manifest.layers[0].digest,)
    assert content(await get(text, after, client, policy=policy), 0) == noise(5000, 0)
    assert leftovers(after) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio keeps idle threads, of earlier loops, too
async def test_no_thread_to_be_had(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of processes, which counts threads, is as real for a service as that of open files."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    text = registry.add(layered(100))
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_start_new_thread", refuse)
        with pytest.raises(HostError, match="no more threads can be started"):
            await get(text, make_store(tmp_path), client)
    await get(text, make_store(tmp_path), client)


async def test_two_pulls_download_once(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(300_000, 200_000, 100)
    text = registry.add(source)
    registry.faults = lambda request: Fault(pause=0.02) if "blobs" in request.path else None
    stores = [make_store(tmp_path) for _ in range(3)]
    images: list[Image] = []

    async def one(store: Store) -> None:
        images.append(await get(text, store, client))

    async with anyio.create_task_group() as group:
        for store in stores:
            group.start_soon(one, store)
    assert images[0] == images[1] == images[2]
    for layer in source.document["layers"]:
        assert registry.bytes_of(layer["digest"]) == layer["size"]
    assert leftovers(stores[0]) == []


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_cancelled_at_any_moment(
    moment: float, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(300_000, 300_000)
    text = registry.add(source)
    registry.faults = lambda request: Fault(pause=0.1) if "blobs" in request.path else None
    store = make_store(tmp_path)
    unpacker = PyUnpacker()
    with anyio.move_on_after(moment):
        await get(text, store, client, unpacker=unpacker)
    assert unpacker.running == 0
    assert store.images() == []
    assert all(name.endswith((".part", ".extents")) for name in leftovers(store))
    registry.faults = lambda _: None
    assert (await get(text, store, client)).digest == source.digest
    assert leftovers(store) == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
@pytest.mark.parametrize("flavour", ["oci", "docker"])
async def test_skopeo_reads_the_store(
    flavour: Any, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(1000, 10, flavour=flavour)
    text = registry.add(source)
    image = await get(text, make_store(tmp_path), client)
    command = ["skopeo", "inspect", f"oci:{tmp_path}/root:{image.references[0]}"]
    shown = json.loads((await anyio.run_process(command)).stdout)
    assert (shown["Digest"] == source.digest) == (flavour == "oci")
    assert shown["Layers"] == [layer["digest"] for layer in source.document["layers"]]
