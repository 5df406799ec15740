"""Images and registries that want to hurt: a clear error or the right result, and the store as it was."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crungo.errors import CrungoError, DigestMismatch, ImageError, ImageNotFound, LayerError, RegistryError
from crungo.image.check import check
from crungo.image.store import Store
from crungo.paths import Roots
from crungo.registry.pull import PullLimits
from crungo.registry.wire import Timeouts
from tests.support.command import Crungo
from tests.support.fakeregistry import FakeRegistry, Fault
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image, sha256
from tests.support.leaks import descendants
from tests.support.pulling import Pulls, places, spawner
from tests.support.tarballs import BLOCK_DEVICE, FIFO, Entry, archive, directory, hard_link, symlink
from tests.support.unpacking import survey

pytestmark = pytest.mark.anyio

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LIMIT = 4_000_000
GOOD = make_image([Layer().directory("d").file("d/f", "good"), Layer().file("d/g", "also good")])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
async def pulls(tmp_path: Path) -> AsyncIterator[Pulls]:
    async with spawner(Roots(root=f"{tmp_path}/spawner", run=f"{tmp_path}/run")) as process:
        yield Pulls(process, timeouts=Timeouts(connect=5, stall=1, whole=2))


@pytest.fixture
async def store(tmp_path: Path, registry: FakeRegistry, pulls: Pulls) -> Store:
    """A store with an image in it, beside a canary."""
    (tmp_path / "canary").write_text("alive")
    os.utime(tmp_path / "canary", (1, 1))
    store = Store(Roots(root=str(tmp_path / "root"), run=str(tmp_path / "run")))
    await pulls(registry.add(GOOD, "good"), store)
    return store


class Untouched:
    """Holds that nothing has changed, in the store and around it, by the end of a block."""

    def __init__(self, store: Store) -> None:
        self._root = Path(store.layout.root)

    def __enter__(self) -> None:
        self._before = places(self._root)
        self._names = sorted(os.listdir(self._root.parent))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            return
        assert places(self._root) == self._before
        assert sorted(os.listdir(self._root.parent)) == self._names
        canary = self._root.parent / "canary"
        assert (canary.read_text(), canary.stat().st_mtime) == ("alive", 1)


def clear(error: CrungoError) -> bool:
    """Whether a message is one line for people, which says what failed and why."""
    return error.message.isprintable() and ": " in error.message and len(error.message) < 1500


UP = b"../../../../canary"

BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "climbs": (archive(Entry(name=UP, content=b"dead")), "climbs"),
    "climbs in its middle": (archive(directory(b"a"), Entry(name=b"a/../../canary")), "climbs"),
    "hard link that climbs": (archive(hard_link(b"h", UP)), "climbs"),
    "hard link through a link": (archive(symlink(b"s", b"/"), hard_link(b"h", b"s/canary")), "does not have before"),
    "hard link to nothing": (archive(hard_link(b"h", b"/etc/passwd")), "does not have before"),
    "hard link to a directory": (archive(directory(b"d"), hard_link(b"h", b"d")), "is a directory"),
    "hard link to the root": (archive(hard_link(b"h", b"/")), "hard link"),
    "whiteout of ..": (archive(Entry(name=b".wh...")), "whiteout"),
    "whiteout of the root": (archive(Entry(name=b".wh..")), "whiteout"),
    "whiteout of nothing": (archive(Entry(name=b"d/.wh.")), "whiteout"),
    "inside a whiteout": (archive(Entry(name=b".wh.a/b")), "inside a whiteout"),
    "root as a link": (archive(symlink(b".", b"/")), "names the layer's root"),
    "parent is a file": (archive(Entry(name=b"f"), Entry(name=b"f/g")), "its parent is not a directory"),
    "link loop": (archive(symlink(b"a", b"b"), symlink(b"b", b"a"), Entry(name=b"a/f")), "Too many levels"),
    "device out of range": (archive(Entry(name=b"b", type=BLOCK_DEVICE, device=(1 << 20, 0))), "device number"),
    "owner out of range": (archive(Entry(name=b"f", uid=1 << 32)), "owner"),
    "no name": (archive(Entry(name=b"")), "no name"),
    "a size beyond the end": (Entry(name=b"f", content=b"x" * 100, size=1 << 40).raw(), "layer"),
    "a negative size": (archive(Entry(name=b"f", size=-1)), "layer"),
    "truncated": (archive(Entry(name=b"f", content=b"x" * 5000))[:3000], "layer"),
    "no archive": (b"neither gzip nor tar, for sure" * 1000, "layer"),
    "larger than allowed": (archive(Entry(name=b"f", content=bytes(LIMIT))), "more than the limit"),
}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("name", BAD_ARCHIVES)
async def test_bad_archives(name: str, compression: Any, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    """The good layer beside the bad one does not stay either."""
    blob, message = BAD_ARCHIVES[name]
    source = make_image([Layer().file("fine", "x").data(), blob], compression=compression)
    with Untouched(store), pytest.raises(LayerError, match=message or None) as caught:
        await pulls(registry.add(source), store, limits=PullLimits(layer_size=LIMIT))
    assert clear(caught.value)


def odd(tree: Path) -> None:
    """What the archives below come to."""
    seen = survey(tree)
    assert seen[b"canary"].content == b"inside"
    assert seen[b"S"].content == b"upper"
    assert seen[b"s"].content == b"lower"
    assert seen[b"caf\xc3\xa9"].content == b"composed"
    assert seen[b"cafe\xcc\x81"].content == b"decomposed"
    assert seen[b"\xff\xfe"].content == b"no text"
    assert seen[b"was-file"].kind == "directory"
    assert seen[b"was-directory"].kind == "file"
    assert seen[b"twice"].content == b"second"
    assert seen[b"before-time"].mtime == -(10**9)
    assert seen[b"p"].kind == "fifo"
    assert seen[b"host"].content == b"/"
    assert b"host/x" not in seen


ODD = archive(
    symlink(b"host", b"/"),
    Entry(name=b"host/canary", content=b"inside"),
    Entry(name=b"/absolute/../S", content=b"upper"),
    Entry(name=b"s", content=b"lower"),
    Entry(name=b"caf\xc3\xa9", content=b"composed"),
    Entry(name=b"cafe\xcc\x81", content=b"decomposed"),
    Entry(name=b"\xff\xfe", content=b"no text"),
    Entry(name=b"was-file"),
    directory(b"was-file"),
    directory(b"was-directory"),
    Entry(name=b"was-directory/in"),
    Entry(name=b"was-directory", content=b"x"),
    Entry(name=b"twice", content=b"first"),
    Entry(name=b"twice", content=b"second"),
    Entry(name=b"before-time", mtime=-1),
    Entry(name=b"p", type=FIFO),
)


async def test_odd_archives(registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    """Links that lead out are followed inside; names are bytes; the last entry of a name holds. Garbage after the
    archive's end belongs to the digests and to nothing else."""
    image = await pulls(registry.add(make_image([ODD + b"garbage" * 1000])), store)
    odd(Path(image.layers[0]))
    assert await check(store, pulls.unpacker) == []


async def test_very_many_entries(registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    blob = b"".join(Entry(name=b"d%d/f%d" % (n % 100, n)).header() for n in range(30_000)) + bytes(1024)
    image = await pulls(registry.add(make_image([blob])), store)
    assert sum(len(names) for _, _, names in os.walk(image.layers[0])) == 30_000


@pytest.mark.parametrize("kind", ["gzip", "zstd", "gzip of gzip", "members"])
async def test_bombs(kind: str, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    """A thousandfold, and more: the limit ends them early, long before the disk is full."""
    zeros = bytes(1 << 20)
    pack = zstandard.ZstdCompressor()
    head = Entry(name=b"f", size=1 << 32).header()
    blob = {
        "gzip": lambda: gzip.compress(head + zeros * 200, 9),
        "zstd": lambda: pack.compress(head + zeros * 2000),
        "gzip of gzip": lambda: gzip.compress(gzip.compress(zeros * 200, 9), 9),
        "members": lambda: gzip.compress(head) + gzip.compress(zeros) * 200,
    }[kind]()
    source = make_image([blob], compression="none")
    before = time.monotonic()
    with Untouched(store), pytest.raises(LayerError) as caught:
        await pulls(registry.add(source), store, limits=PullLimits(layer_size=LIMIT))
    assert clear(caught.value)
    assert time.monotonic() - before < 20


async def test_trailing_garbage_after_compression(registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    tar = Layer().file("f", "x").data()
    source = make_image([gzip.compress(tar) + b"garbage" * 100], compression="none")
    with Untouched(store), pytest.raises((LayerError, DigestMismatch)):
        await pulls(registry.add(source), store)


def changed(**manifest: Any) -> Source:
    """The good image's layers under a manifest with other fields."""
    return make_image([Layer().file("x", "y")], change_manifest=lambda document: document.update(manifest))


def first_layer(**fields: Any) -> Source:
    return make_image([Layer().file("x", "y")], change_manifest=lambda d: d["layers"][0].update(fields))


def configured(change: Callable[[dict[str, Any]], None]) -> Source:
    return make_image([Layer().file("x", "y")], change_config=change)


def diff_ids(*found: Any) -> Source:
    return configured(lambda config: config["rootfs"].update(diff_ids=list(found)))


BAD_IMAGES: dict[str, tuple[Source, type[CrungoError], str]] = {
    "wrong diff id": (diff_ids("sha256:" + "1" * 64), DigestMismatch, "unpacks to"),
    "the diff id of another image's layer": (
        diff_ids(json.loads(GOOD.blobs[GOOD.document["config"]["digest"]])["rootfs"]["diff_ids"][0]),
        DigestMismatch,
        "unpacks to",
    ),
    "too few diff ids": (diff_ids(), ImageError, "has 1 layers, its configuration 0"),
    "too many diff ids": (diff_ids(*["sha256:" + "1" * 64] * 2), ImageError, "has 1 layers, its configuration 2"),
    "a diff id that is a path": (diff_ids("sha256:" + "../" * 21 + "x"), ImageError, "digest"),
    "a diff id that is a number": (diff_ids(7), ImageError, ""),
    "a smaller layer": (first_layer(size=100), DigestMismatch, "bytes, the manifest says"),
    "a larger layer": (first_layer(size=1 << 30), DigestMismatch, "bytes, the manifest says"),
    "a layer of negative size": (first_layer(size=-1), ImageError, "size"),
    "a layer of absurd size": (first_layer(size=1 << 62), ImageError, "size"),
    "a layer whose size is a fraction": (first_layer(size=1.5), ImageError, "size"),
    "a digest that is a path": (first_layer(digest="sha256:../../../../etc/passwd"), ImageError, "digest"),
    "a digest of an unknown kind": (first_layer(digest="md5:" + "0" * 32), ImageError, "digest"),
    "a foreign layer": (
        first_layer(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        ImageError,
        "is foreign",
    ),
    "a layer of an unknown type": (first_layer(mediaType="text/html"), ImageError, "unknown type"),
    "schema 1": (changed(schemaVersion=1), ImageError, "schema version 1 are not supported"),
    "no schema": (changed(schemaVersion=3), ImageError, "schemaVersion is not 2"),
    "another type inside": (changed(mediaType=INDEX), ImageError, "says of itself"),
    "two things at once": (changed(manifests=[]), ImageError, "at once"),
    "layers that are no list": (changed(layers={}), ImageError, "layers"),
    "a thousand layers": (changed(layers=GOOD.document["layers"][:1] * 1000), ImageError, "1000 layers"),
    "no configuration": (changed(config=None), ImageError, "not a descriptor"),
    "an artifact": (
        make_image([Layer().file("x")], change_manifest=lambda d: d["config"].update(mediaType="application/vnd.wasm")),
        ImageError,
        "artifact",
    ),
    "for another machine": (
        configured(lambda config: config.update(architecture="s390x" if config["architecture"] != "s390x" else "arm")),
        ImageError,
        "it is for linux/",
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
async def test_images_that_lie(name: str, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    source, kind, message = BAD_IMAGES[name]
    with Untouched(store), pytest.raises(kind, match=message or None) as caught:
        await pulls(registry.add(source), store)
    assert clear(caught.value)


def nested(opening: bytes, closing: bytes, inner: bytes = b"1", depth: int = 200_000) -> bytes:
    return opening * depth + inner + closing * depth


BAD_MANIFESTS: dict[str, tuple[bytes, type[CrungoError], str]] = {
    "too large": (b" " * (4 << 20) + GOOD.manifest, RegistryError, "longer than"),
    "far too large": (b"[" + b"0," * (8 << 20) + b"0]", RegistryError, "longer than"),
    "deep": (b'{"a":' + nested(b"[", b"]") + b"}", ImageError, ""),
    "deep objects": (nested(b'{"a":', b"}"), ImageError, ""),
    "a huge number": (b'{"schemaVersion":' + b"9" * 100_000 + b"}", ImageError, ""),
    "a huge exponent": (b'{"schemaVersion":1e999999999}', ImageError, ""),
    "no number": (b'{"schemaVersion":NaN}', ImageError, ""),
    "a name twice": (b'{"schemaVersion":2,"schemaVersion":2}', ImageError, ""),
    "no object": (b"[]", ImageError, ""),
    "no JSON": (b"<html>", ImageError, ""),
    "no text": (b"\xff\xfe{}", ImageError, ""),
    "nothing": (b"", ImageError, ""),
    "half of it": (GOOD.manifest[:200], ImageError, ""),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
async def test_manifests_that_are_none(name: str, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    body, kind, message = BAD_MANIFESTS[name]
    registry.put("image", "latest", MANIFEST, body)
    with Untouched(store), pytest.raises(kind, match=message or None) as caught:
        await pulls(f"{registry.address}/image", store)
    assert clear(caught.value)


BAD_CONFIGS: dict[str, bytes] = {
    "no JSON": b"]",
    "deep": nested(b'{"a":', b"}"),
    "a list": b"[]",
    "lists of the wrong things": b'{"rootfs":{"type":"layers","diff_ids":{}},"config":[]}',
    "huge": b'{"a":"' + b"x" * (9 << 20) + b'"}',
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
async def test_configurations_that_are_none(name: str, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    body = BAD_CONFIGS[name]
    source = make_image(
        [Layer().file("x", "y")],
        change_manifest=lambda document: document["config"].update(digest=sha256(body), size=len(body)),
    )
    registry.blobs[sha256(body)] = body
    with Untouched(store), pytest.raises(ImageError) as caught:
        await pulls(registry.add(source), store)
    assert clear(caught.value)


async def test_an_index_that_leads_back(registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    """Digests make a real cycle impossible; a registry that sends one all the same sends wrong content."""
    wanted = "sha256:" + "5" * 64
    entry = {"mediaType": INDEX, "digest": wanted, "size": 300}
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    registry.put("image", "latest", INDEX, body)
    registry.manifests[f"image/manifests/{wanted}"] = (INDEX, body)
    with Untouched(store), pytest.raises(DigestMismatch):
        await pulls(f"{registry.address}/image", store)


async def test_indexes_within_indexes(registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    entry: dict[str, Any] = {"mediaType": MANIFEST, "digest": GOOD.digest, "size": len(GOOD.manifest)}
    for depth in range(30):
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] * 50}).encode()
        entry = {"mediaType": INDEX, "digest": registry.put("image", f"{depth}", INDEX, body), "size": len(body)}
    with Untouched(store), pytest.raises(ImageError, match="nested more than"):
        await pulls(f"{registry.address}/image:29", store)


ODD_MANIFEST_ANSWERS: dict[str, tuple[Fault, type[CrungoError] | None]] = {
    "another document": (Fault(body=b"{}"), DigestMismatch),
    "another content type": (Fault(headers={"Content-Type": "text/html"}), None),
    "another digest": (Fault(headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), DigestMismatch),
    "a digest that is a path": (Fault(headers={"Docker-Content-Digest": "../../x"}), None),
    "404": (Fault(status=404), ImageNotFound),
    "418": (Fault(status=418), RegistryError),
    "304": (Fault(status=304), RegistryError),
    "206": (Fault(status=206), RegistryError),
    "204": (Fault(status=204), RegistryError),
    "a huge header": (Fault(headers={"X": "y" * 200_000}), RegistryError),
    "a control character": (Fault(headers={"Content-Type": "a\x1b[31m"}), None),
    "no end": (Fault(chunked=True, body=b"[" * (64 << 20)), RegistryError),
    "too slow": (Fault(pause=0.4, chunked=True, body=bytes(2 << 20)), RegistryError),
}


@pytest.mark.parametrize("name", ODD_MANIFEST_ANSWERS)
async def test_odd_answers_for_a_manifest(name: str, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    fault, kind = ODD_MANIFEST_ANSWERS[name]
    source = make_image([Layer().file("x", "y")])
    text = registry.add(source)
    registry.faults = lambda request: fault if "manifests" in request.path else None
    if kind is None:
        assert (await pulls(text, store)).digest == source.digest
        return
    with Untouched(store), pytest.raises(kind) as caught:
        await pulls(text, store)
    assert clear(caught.value)


ODD_LAYER_ANSWERS: dict[str, Fault] = {
    "another range": Fault(headers={"Content-Range": "bytes 5-10/11"}, status=206),
    "nothing": Fault(body=b""),
    "more": Fault(body=bytes(100_000)),
    "no end": Fault(chunked=True, body=bytes(64 << 20)),
    "416": Fault(status=416),
    "204": Fault(status=204),
    "a negative length": Fault(headers={"Content-Length": "-5"}),
    "compressed on its way": Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(bytes(50_000_000))),
}


@pytest.mark.parametrize("name", ODD_LAYER_ANSWERS)
async def test_odd_answers_for_a_layer(name: str, registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    source = make_image([Layer().file("x", os.urandom(3000))])
    text = registry.add(source)
    digest = source.document["layers"][0]["digest"]
    registry.faults = lambda request: ODD_LAYER_ANSWERS[name] if request.path.endswith(digest) else None
    with Untouched(store), pytest.raises((RegistryError, DigestMismatch)) as caught:
        await pulls(text, store)
    assert clear(caught.value)
    # No answer makes a client take more than it was promised, by more than what was on its way.
    assert registry.bytes_of(digest) < 20_000_000


async def test_memory_stays_bounded(registry: FakeRegistry, store: Store, pulls: Pulls) -> None:
    """A layer that grows a hundredfold passes through without being held: neither here nor by whoever unpacks it."""
    blob = archive(Entry(name=b"f", content=bytes(300 << 20)))
    source = make_image([blob])
    text = registry.add(source)
    del blob
    before = _resident(os.getpid())
    peaks: list[int] = []

    def watch() -> None:
        peaks.extend(_resident(process.pid) for process in descendants())

    registry.faults = lambda _: watch()
    image = await pulls(text, store)
    assert image.size > 300 << 20
    assert _resident(os.getpid()) - before < 100 << 20
    assert max(peaks) < 150 << 20


def _resident(pid: int) -> int:
    """The most that was resident, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.parametrize("name", ["climbs", "truncated", "no archive"])
def test_the_command_line_says_it_in_one_line(name: str, registry: FakeRegistry, fresh_crungo: Crungo) -> None:
    blob, message = BAD_ARCHIVES[name]
    text = registry.add(make_image([blob]))
    for words in (("pull", "-q", text), ("run", text, "true")):
        done = fresh_crungo(*words, check=125)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("crungo: layer")
        assert message in lines[-1]
        assert [line for line in lines if line.startswith("crungo: ")] == lines[-1:]
    assert os.listdir(fresh_crungo.root / "ingest") == []
    assert os.listdir(fresh_crungo.root / "layers") == []
    assert os.listdir(fresh_crungo.root / "blobs" / "sha256") == []
