"""Which of several images a pull takes: that for the platform that is asked for, else for this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crungo.errors import ImageError, ImageNotKnown, StoreError
from crungo.image.platform import Platform
from crungo.image.reference import Reference
from crungo.registry.client import RegistryClient
from tests.support.fakeregistry import FakeRegistry
from tests.support.image import Image as Source
from tests.support.image import sha256
from tests.support.smallpulls import get, layered, make_store

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.anyio

OCI_INDEX = "application/vnd.oci.image.index.v1+json"


async def test_platform_from_index(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    images = {name: layered(10, seed=n, architecture=name) for n, name in enumerate(("amd64", "arm64", "s390x"))}
    entries = []
    for name, source in images.items():
        registry.add(source, tag=name)
        entries.append(entry(source, {"os": "linux", "architecture": name}))
    attestation = layered(10, seed=50)
    registry.add(attestation, tag="attestation")
    entries.insert(0, entry(attestation, {"os": "unknown", "architecture": "unknown"}))
    inner = index(entries[2:])
    inner_digest = registry.put("image", "inner", OCI_INDEX, inner)
    outer = index([*entries[:2], {"mediaType": OCI_INDEX, "digest": inner_digest, "size": len(inner)}])
    target = registry.put("image", "latest", OCI_INDEX, outer)
    text = f"{registry.address}/image"
    store = make_store(tmp_path)

    amd = await get(text, store, client, platform=Platform.parse("linux/amd64"))
    assert (amd.digest, amd.target) == (images["amd64"].digest, target)
    arm = await get(text, store, client, platform=Platform.parse("linux/arm64/v8"), policy="missing")
    assert arm.digest == images["arm64"].digest
    with pytest.raises(ImageError, match="no image for linux/riscv64"):
        await get(text, store, client, platform=Platform.parse("linux/riscv64"))
    registry.sent.clear()
    await get(text, store, client, platform=Platform.parse("linux/arm64"))
    assert [sent.request.method for sent in registry.sent] == ["HEAD"]

    with pytest.raises(ImageNotKnown, match=f"^No such image: {text}:latest for linux/s390x$"):
        await get(text, store, client, platform=Platform.parse("linux/s390x"), policy="never")

    assert store.image(target).id == arm.id  # amd has lost the name to it
    store.tag(amd.id, Reference.parse("amd"))
    with pytest.raises(StoreError, match="ambiguous"):
        store.image(target)
    store.remove(arm.id)
    assert store.image(target).id == amd.id


async def test_wrong_platform_without_index(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    text = registry.add(layered(10, architecture="s390x"))
    host = Platform.host()
    message = f"it is for linux/s390x, not for {host.os}/{host.architecture}$"  # of what variant says nothing here
    with pytest.raises(ImageError, match=message) as caught:
        await get(text, make_store(tmp_path), client)
    assert caught.value.hint == "ask for it with --platform linux/s390x"


async def test_a_pull_without_a_platform_is_for_this_machine(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    """Whatever a pull for another one has left under the name; who does not ask the registry takes what is here."""
    host = Platform.host()
    ours, foreign = layered(10, architecture=host.architecture), layered(10, seed=1, architecture="s390x")
    for source in (ours, foreign):
        registry.add(source, tag=source.architecture)
    both = index([entry(source, {"os": "linux", "architecture": source.architecture}) for source in (ours, foreign)])
    registry.put("image", "latest", OCI_INDEX, both)
    text, store = f"{registry.address}/image", make_store(tmp_path)
    for policy in ("always", "newer"):
        elsewhere = await get(text, store, client, platform=Platform.parse("linux/s390x"))
        assert elsewhere.digest == foreign.digest
        assert await get(text, store, client, policy="missing") == elsewhere
        assert (await get(text, store, client, policy=policy)).digest == ours.digest


async def test_an_image_that_names_no_platform_is_for_any(
    registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(10, change_config=lambda document: document.update(os="", architecture=""))
    text, store = registry.add(source), make_store(tmp_path)
    for methods in (["GET"] * 3, ["HEAD"]):
        registry.sent.clear()
        await get(text, store, client, platform=Platform.parse("linux/s390x"))
        assert [sent.request.method for sent in registry.sent] == methods


def entry(source: Source, platform: dict[str, str]) -> dict[str, Any]:
    return {
        "mediaType": source.media_type,
        "digest": sha256(source.manifest),
        "size": len(source.manifest),
        "platform": platform,
    }


def index(entries: list[dict[str, Any]]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
