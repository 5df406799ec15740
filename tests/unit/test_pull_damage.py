"""Pulls into stores that a restart, a repair or somebody has taken something from, or put something into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crungo.errors import ImageNotKnown, StoreError
from crungo.image.check import check
from crungo.registry.client import RegistryClient
from crungo.registry.progress import ImageDone, LayerDone, ProgressEvent
from tests.support.fakeregistry import FakeRegistry
from tests.support.smallpulls import content, get, layered, leftovers, make_store, noise, spoil

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.anyio


async def test_layers_of_another_boot_are_unpacked_again(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    text = registry.add(layered(5000, 10))
    before = make_store(tmp_path, boot="one")
    image = await get(text, before, client)
    spoil(image)

    after = make_store(tmp_path, boot="two")
    assert len(after.untrusted(image)) == 2
    registry.sent.clear()
    again = await get(text, after, client, policy="never")
    assert registry.sent == []
    assert content(again, 0) == noise(5000, 0)
    assert after.untrusted(again) == ()
    assert leftovers(after) == []


async def test_an_image_that_is_removed_while_it_is_made_good(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """It was asked for, so it is pulled; without a registry it is not known any more."""
    text = registry.add(layered(100))
    await get(text, make_store(tmp_path, boot="one"), client)
    store = make_store(tmp_path, boot="two")

    def remove(event: ProgressEvent) -> None:
        if isinstance(event, LayerDone) and store.refs.all():
            store.remove(text, force=True)

    with pytest.raises(ImageNotKnown):
        await get(text, store, client, policy="never", progress=remove)
    await get(text, make_store(tmp_path, boot="one"), client)
    image = await get(text, store, client, progress=remove)
    assert store.untrusted(image) == ()
    assert store.image(text) == image


async def test_settled_layers_are_trusted(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    store = make_store(tmp_path, boot="one")
    image = await get(registry.add(layered(10, 20)), store, client)
    assert store.settle() == 2
    assert store.settle() == 0
    assert make_store(tmp_path, boot="two").untrusted(image) == ()


async def test_damaged_blob_is_fetched_again(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(5000)
    text = registry.add(source)
    image = await get(text, make_store(tmp_path, boot="one"), client)
    digest = source.document["layers"][0]["digest"]
    blob = tmp_path / "root/blobs/sha256" / digest[7:]
    blob.write_bytes(bytes(len(source.blobs[digest])))
    after = make_store(tmp_path, boot="two")
    assert (await get(text, after, client)).id == image.id
    assert blob.read_bytes() == source.blobs[digest]
    assert after.untrusted(image) == ()


async def test_missing_blob_is_fetched_though_its_layer_is_here(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(5000, 40)
    text = registry.add(source)
    store = make_store(tmp_path)
    image = await get(text, store, client)
    digest = source.document["layers"][0]["digest"]
    blob = tmp_path / "root/blobs/sha256" / digest[7:]
    blob.write_bytes(b"!")
    await check(store, repair=True)
    assert not blob.exists()
    for policy in ("newer", "missing", "never"):
        assert await get(text, store, client, policy=policy) == image
    assert len(registry.requests(digest)) == 1

    events: list[ProgressEvent] = []
    assert await get(text, store, client, progress=events.append) == image
    assert blob.read_bytes() == source.blobs[digest]
    assert [event.changed for event in events if isinstance(event, ImageDone)] == [False]
    assert await check(store) == []


@pytest.mark.parametrize("policy", ["always", "missing"])
async def test_damaged_manifest_is_fetched_again(
    policy: str, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(50)
    text = registry.add(source)
    store = make_store(tmp_path)
    image = await get(text, store, client)
    (tmp_path / "root/blobs/sha256" / source.digest[7:]).write_bytes(b"{}")
    assert store.images() == []
    assert await get(text, store, client, policy=policy) == image


@pytest.mark.parametrize("place", ["ingest/sha256-{hex}.part", "layers", "refs/{name}"])
async def test_something_else_in_a_place(
    place: str, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """What the system refuses is an error of the store's, and names where."""
    source = layered(100)
    text = registry.add(source)
    store = make_store(tmp_path)
    store.layout.create()
    digits = source.document["layers"][0]["digest"].removeprefix("sha256:")
    path = f"{store.layout.root}/{place.format(hex=digits, name=text.replace(':', '%3A').replace('/', '%2F'))}"
    if place == "layers":
        os.rmdir(path)
        os.mkfifo(path)
    else:
        os.mkdir(path)
    with pytest.raises(StoreError, match=f"store: {path}.*: (Is|Not) a directory|store: {path}: File exists"):
        await get(text, store, client)
    assert store.images() == []
