"""Images that are not what their digests, sizes or configurations say: a clear error, and a store as it was before."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crungo.errors import CrungoError, DigestMismatch, ImageError, LayerError
from crungo.registry.client import RegistryClient
from crungo.registry.pull import PullLimits
from tests.support.fakeregistry import FakeRegistry, Fault
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image, sha256
from tests.support.pyunpacker import Liar
from tests.support.smallpulls import get, layered, leftovers, make_store, noise, on

pytestmark = pytest.mark.anyio


def tree(path: Path) -> dict[str, bytes]:
    """All files of a store, apart from its own lock."""
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.name != "lock"}


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


async def test_an_index_with_a_wrong_size(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    source = layered(10)
    registry.add(source)
    entry = {"mediaType": source.media_type, "digest": source.digest, "size": len(source.manifest) - 1}
    registry.put("image", "index", kind, json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    store = make_store(tmp_path)
    with pytest.raises(DigestMismatch, match="its index says"):
        await get(f"{registry.address}/image:index", store, client)
    assert tree(tmp_path) == {}
