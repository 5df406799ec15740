"""Small images, stores for them, and pulls that need no spawner."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crungo.image.reference import Reference
from crungo.image.store import Image, Store
from crungo.paths import Roots
from crungo.registry.client import RegistryClient
from crungo.registry.pull import pull
from crungo.registry.retry import RetryPolicy
from tests.support.fakeregistry import Fault, Request
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image
from tests.support.pyunpacker import PyUnpacker

__all__ = [
    "Faults",
    "QUICK",
    "blob_names",
    "content",
    "get",
    "layered",
    "leftovers",
    "make_store",
    "noise",
    "on",
    "spoil",
]

QUICK = RetryPolicy(retries=3, delay=0.0)


def make_store(path: Path, **options: Any) -> Store:
    return Store(Roots(root=str(path / "root"), run=str(path / "run")), **options)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def layered(*sizes: int, seed: int = 0, **options: Any) -> Source:
    """An image with one layer per size, each a file of so many random bytes."""
    return make_image(
        [Layer().directory("d").file(f"d/{n}", noise(size, seed + n)) for n, size in enumerate(sizes)], **options
    )


def leftovers(store: Store) -> list[str]:
    """What is being made or claimed; empty as well where the store was never written to."""
    return [
        name for path in (store.layout.ingest, store.layout.leases) for _, _, names in os.walk(path) for name in names
    ]


def content(image: Image, number: int) -> bytes:
    """The file of an image's layer, as ``layered`` made it."""
    return Path(image.layers[number], "d", str(number)).read_bytes()


def spoil(image: Image) -> None:
    """Do to the lowest layer what a crash of the machine may do."""
    Path(image.layers[0], "d", "0").write_bytes(b"")


def blob_names(store: Store) -> set[str]:
    return {f"sha256:{name}" for name in os.listdir(f"{store.layout.root}/blobs/sha256")}


async def get(text: str, store: Store, client: RegistryClient, **options: Any) -> Image:
    options.setdefault("unpacker", PyUnpacker())
    options.setdefault("retry", QUICK)
    return await pull(Reference.parse(text), store=store, client=client, **options)


Faults = Callable[[Request], Fault | None]


def on(source: Source, fault: Callable[[Request], Fault | None], layer: int = 0) -> Faults:
    digest = source.document["layers"][layer]["digest"]
    return lambda request: fault(request) if request.path.endswith(digest) else None
