"""The store without a network: names, ids, removal, leases, garbage and figures."""

from __future__ import annotations

# ruff: noqa: ASYNC240 - the store itself is blocking, and so are its tests
import asyncio
import errno
import json
import os
import resource
import stat
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from crungo.cli.image_filters import Selection
from crungo.cli.pruning import prune_store
from crungo.errors import ImageInUse, ImageNotKnown, StoreError, UsageError
from crungo.image.check import check
from crungo.image.layout import write_all
from crungo.image.leases import Lease
from crungo.image.locks import open_locked
from crungo.image.manifest import Descriptor
from crungo.image.mediatype import OCI_MANIFEST
from crungo.image.platform import Platform
from crungo.image.reference import Reference
from crungo.image.refs import RefRecord, Refs
from crungo.image.store import Image, Store
from crungo.image.trees import remove_tree
from crungo.image.usage import Pruned, prune, usage
from tests.support.events import wait_until
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image
from tests.support.pyunpacker import PyUnpacker
from tests.support.smallpulls import leftovers, make_store

PLATFORM = Platform.parse("linux/amd64")
NOTHING = Pruned(untagged=(), deleted=(), leftovers=(), freed=0)


async def put(store: Store, source: Source, *names: str) -> Image:
    """Put an image into the store as a pull does, without a registry."""
    config = source.document["config"]["digest"]
    with store.lease([]):
        pass
    for layer in source.document["layers"]:
        async with store.blobs.part(layer["digest"], layer["size"]) as part:
            if part is not None:
                await part.segment(0).write([source.blobs[layer["digest"]]], layer["size"])
                part.commit()
        async with store.layers.staging(layer["digest"]) as staging:
            fd = store.blobs.open(layer["digest"])
            async with PyUnpacker().unpack(fd, staging.directory, media_type="tar", limit=1 << 30) as unpacking:
                staging.commit(await unpacking.finish(layer["size"]))
            os.close(fd)
    manifest = Descriptor(media_type=source.media_type, digest=source.digest, size=len(source.manifest))
    bodies = {source.digest: source.manifest, config: source.blobs[config]}
    for name in names:
        record = RefRecord(
            reference=Reference.parse(name), target=manifest, manifest=manifest, image_id=config, platform=PLATFORM
        )
        store.commit(record, bodies)
    return store.image(names[0])


def make(*contents: str, **options: Any) -> Source:
    return make_image([Layer().directory("d").file("d/0", text) for text in contents], **options)


def everything(store: Store) -> list[str]:
    """What the store holds of images."""
    return store.blobs.names() + store.layers.names() + os.listdir(store.layout.refs)


def listed(store: Store) -> list[str]:
    entries = json.loads(Path(store.layout.index).read_bytes())["manifests"]
    return sorted(entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "-") for entry in entries)


@pytest.mark.anyio
class TestNames:
    async def test_ways_to_an_image(self, store: Store) -> None:
        image = await put(store, make("x"), "alpine", "a.b/c:d")
        digits = image.id[7:]
        for what in ("alpine", "library/alpine:latest", "a.b/c:d", digits, digits[:6], image.id, image.id[:20]):
            assert store.image(what) == image
        assert store.image(f"alpine@{image.digest}") == image
        assert store.image(image.digest) == image
        assert [str(name) for name in image.references] == ["a.b/c:d", "docker.io/library/alpine:latest"]
        assert listed(store) == ["a.b/c:d", "docker.io/library/alpine:latest"]
        for what in ("alpine:2", "c:d", "f" * 64, "sha256:" + "0" * 20, f"other@{image.digest}"):
            with pytest.raises(ImageNotKnown, match="No such image"):
                store.image(what)

    async def test_ambiguous_beginning(self, store: Store) -> None:
        names: list[str] = []
        while len(names) < 17:  # two of seventeen ids begin with the same digit
            names.append((await put(store, make(str(len(names))), f"x:{len(names)}")).id[7])
        twice = next(digit for digit in names if names.count(digit) > 1)
        with pytest.raises(StoreError, match="ambiguous"):
            store.image(f"sha256:{twice}")

    async def test_tag_and_untag(self, store: Store) -> None:
        one = await put(store, make("1"), "one")
        two = await put(store, make("2"), "two")
        store.tag("one", Reference.parse("two"))
        assert store.image("two").id == one.id
        assert store.image(two.id).references == ()
        assert listed(store) == ["-", "docker.io/library/one:latest", "docker.io/library/two:latest"]
        store.tag(two.id, Reference.parse("back"))
        assert store.image(two.id).references == (Reference.parse("back"),)
        assert listed(store).count("-") == 0
        store.untag(Reference.parse("back"))
        assert store.image(two.id).references == ()
        with pytest.raises(ImageNotKnown):
            store.untag(Reference.parse("back"))
        with pytest.raises(UsageError):
            store.tag("one", Reference.parse(f"x@{one.digest}"))
        with pytest.raises(ImageNotKnown):
            store.tag("three", Reference.parse("x"))

    async def test_a_commit_returns_what_it_has_committed(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody takes the name away before it was looked up."""
        look, locked = Store.image, []

        def look_locked(self: Store, what: str | Reference) -> Image:
            fd = open_locked(self.layout.lock)
            locked.append(fd is None)
            if fd is not None:
                os.close(fd)
            return look(self, what)

        image = await put(store, make("1"), "one")
        manifest = Descriptor(media_type=OCI_MANIFEST, digest=image.digest, size=1000)
        record = RefRecord(
            reference=Reference.parse("two"), target=manifest, manifest=manifest, image_id=image.id, platform=PLATFORM
        )
        bodies = {digest: store.blobs.read(digest, limit=1000) for digest in (image.digest, image.id)}
        monkeypatch.setattr(Store, "image", look_locked)
        assert store.commit(record, bodies).id == image.id
        assert locked == [True]

    async def test_long_name(self, store: Store) -> None:
        name = "r.example:5000/" + "a" * 120 + "/" + "b" * 120 + ":" + "t" * 128
        await put(store, make("1"), name, name[:-1])
        assert len(store.image(name).references) == 2

    async def test_damaged_record(self, store: Store) -> None:
        await put(store, make("1"), "one", "two")
        path = Path(store.layout.refs, sorted(os.listdir(store.layout.refs))[0])
        for body in (b"", b"{}", b"[]", path.read_bytes().replace(b"one", b"six")):
            path.write_bytes(body)
            assert [str(name) for name in store.image("two").references] == ["docker.io/library/two:latest"]
            with pytest.raises(ImageNotKnown):
                store.image("one")
        [problem] = await check(store, repair=True)
        assert (problem.kind, problem.mended) == ("name", True)
        assert await check(store) == []

    @pytest.mark.parametrize(
        "name", ["blobs", "refs", "layers", "ingest", "leases", "lock", "index.json", "oci-layout"]
    )
    async def test_what_was_lost_is_made_again(self, name: str, store: Store) -> None:
        """What a check of the file system or a hasty hand takes away: the store can be used, and be mended."""
        image = await put(store, make("1"), "one")
        remove_tree(f"{store.layout.root}/{name}")
        assert usage(store, store.in_use()).leftovers == 0
        await check(store, PyUnpacker(), repair=True)
        assert await check(store, PyUnpacker()) == []
        assert await put(store, make("1"), "one") == image
        with store.hold(image):
            assert prune(store, images="all", in_use=store.users).deleted == ()

    async def test_empty_store(self, store: Store) -> None:
        assert store.images() == []
        assert usage(store).images == ()
        assert await check(store) == []
        with pytest.raises(ImageNotKnown):
            store.image("x")
        assert not os.path.exists(store.layout.root)
        store.layout.create()
        assert await check(store) == []


@pytest.mark.anyio
class TestRemoval:
    async def test_last_name_takes_the_image(self, store: Store) -> None:
        image = await put(store, make("1", "2"), "one", "one:b")
        removal = store.remove("one")
        assert (removal.untagged, removal.deleted) == (("one:latest",), ())
        removal = store.remove("one:b")
        assert (removal.untagged, removal.deleted) == (("one:b",), (image.id,))
        assert removal.freed > 0
        assert everything(store) == leftovers(store) == listed(store) == []

    async def test_shared_layers_stay(self, store: Store) -> None:
        await put(store, make("base", "1"), "one")
        two = await put(store, make("base", "2"), "two")
        store.remove("one")
        assert store.image("two") == two
        assert len(store.layers.names()) == 2
        assert await check(store, PyUnpacker()) == []

    async def test_by_id(self, store: Store) -> None:
        image = await put(store, make("1"), "one", "two")
        with pytest.raises(ImageInUse, match="several repositories"):
            store.remove(image.id)
        removal = store.remove(image.id[7:15], force=True)
        assert sorted(removal.untagged) == ["one:latest", "two:latest"]
        assert everything(store) == []

    async def test_in_use(self, store: Store) -> None:
        image = await put(store, make("1"), "one")
        with pytest.raises(ImageInUse, match="used by box"):
            store.remove("one", in_use=lambda found: ["box"] if found.id == image.id else [])
        removal = store.remove("one", force=True, in_use=lambda _: ["box"])
        assert (removal.untagged, removal.deleted) == (("one:latest",), ())
        assert os.path.isdir(image.layers[0])
        with pytest.raises(ImageInUse, match="used by box"):  # it has no name left to lose
            store.remove(image.id, force=True, in_use=lambda _: ["box"])
        assert store.remove(image.id).deleted == (image.id,)
        assert everything(store) == []

    async def test_holders_are_users(self, store: Store) -> None:
        store.in_use()  # where there is no store yet, too
        image = await put(store, make("1"), "one")
        assert not store.in_use()(image)
        with store.lease([image.digest]):  # a pull keeps it, and does not use it
            assert not store.in_use()(image)
        with store.hold(image), store.hold(image):
            assert store.in_use()(image) == [f"process {os.getpid()}"] * 2
            with pytest.raises(ImageInUse, match=f"used by process {os.getpid()}"):
                store.remove("one", in_use=store.users)
            assert prune(store, images="all", in_use=store.users).deleted == ()
        assert prune(store, images="all", in_use=store.users, wanted=lambda _: False).deleted == ()
        assert store.remove("one", in_use=store.users).deleted == (image.id,)

    async def test_leased_content_stays(self, store: Store) -> None:
        image = await put(store, make("1"), "one")
        with store.hold(image):
            store.remove("one")
            assert os.path.isdir(image.layers[0])
            assert prune(store).deleted == ()
            assert os.path.isdir(image.layers[0])
        prune(store)
        assert everything(store) == []

    async def test_what_is_gone_is_not_held(self, store: Store) -> None:
        image = await put(store, make("1", "2"), "one")
        store.remove("one")
        with pytest.raises(ImageNotKnown, match=f"No such image: {image.id}"):
            store.hold(image)
        with store.keep(image):  # a pull makes it anew
            assert len(os.listdir(store.layout.leases)) == 1
        assert leftovers(store) == []

    async def test_lease_of_a_dead_process(self, store: Store) -> None:
        image = await put(store, make("1"), "one")
        script = (
            "import os, sys; from crungo.image.store import Store; from crungo.paths import Roots\n"
            "store = Store(Roots(root=sys.argv[1], run='/nowhere'))\n"
            "lease = store.hold(store.image('one')); os._exit(0)"
        )
        command = [sys.executable, "-c", script, store.layout.root]
        await anyio.run_process(command, cwd=Path(__file__).parents[2])
        assert len(os.listdir(store.layout.leases)) == 1
        assert store.remove("one").deleted == (image.id,)
        assert everything(store) == []

    async def test_prune(self, store: Store) -> None:
        await put(store, make("1"), "one")
        two = await put(store, make("2"), "one")
        assert len(prune(store).deleted) == 1
        assert [image.id for image in store.images()] == [two.id]
        assert prune(store, images="all", in_use=lambda _: ["box"]).deleted == ()
        assert prune(store, images="all").untagged == ("one:latest",)
        assert everything(store) == []

    async def test_on_a_full_disk(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """What makes room needs none."""
        image = await put(store, make("1"), "one")
        await put(store, make("2"), "two")
        write = Refs.write_index

        def write_if_there_is_room(self: Refs) -> None:
            if os.path.exists(image.layers[0]):
                raise StoreError("store: cannot write index.json: No space left on device")
            write(self)

        monkeypatch.setattr(Refs, "write_index", write_if_there_is_room)
        assert store.remove("one").deleted == (image.id,)
        assert listed(store) == ["docker.io/library/two:latest"]
        assert await check(store, PyUnpacker()) == []

    async def test_prune_leaves_what_is_taken_into_use_meanwhile(self, store: Store) -> None:
        image = await put(store, make("1"), "one")
        with ExitStack() as leases:

            def use(found: Image) -> bool:
                leases.enter_context(store.hold(found))
                return True

            assert prune_store(store, Selection([use], ()), everything=True, leftovers=False) == NOTHING
            assert store.image("one") == image
        assert prune(store, images="all", in_use=store.users).deleted == (image.id,)

    async def test_prune_leaves_what_gets_a_name_meanwhile(self, store: Store) -> None:
        image = await put(store, make("1"), "one")
        store.untag(Reference.parse("one"))

        def tag(found: Image) -> bool:
            store.tag(found.id, Reference.parse("two"))
            return True

        assert prune(store, in_use=store.users, wanted=tag) == NOTHING
        assert store.image("two").id == image.id

    async def test_leftovers(self, store: Store) -> None:
        await put(store, make("1"), "one")
        Path(f"{store.layout.root}/blobs/.directory").write_bytes(b"nobody's, and no harm")
        strange = [Path(folder, name) for folder in (store.layout.leases, store.layout.ingest) for name in ("a", "b")]
        for path in strange:  # no lock can be had of them
            os.mknod(path, stat.S_IFSOCK | 0o600) if path.name == "a" else path.symlink_to("/")
        Path(store.layout.leases, "folder").mkdir()
        ingest = Path(store.layout.ingest)
        (ingest / ("sha256-" + "1" * 64 + ".part")).write_bytes(bytes(10_000))
        (ingest / ("sha256-" + "1" * 64 + ".part.extents")).write_bytes(b"")
        (ingest / ("sha256-" + "2" * 64 + ".part.extents")).write_bytes(b"")
        (ingest / "tmp-1").write_bytes(b"x")
        (ingest / "trash-1/a/b").mkdir(parents=True)
        (ingest / ("layer-" + "3" * 64) / "diff").mkdir(parents=True)
        Path(store.layout.blob("sha256:" + "4" * 64)).write_bytes(b"nobody's")
        digest = "sha256:" + "5" * 64
        async with store.blobs.part(digest, 10) as part, store.layers.staging(digest):
            assert part is not None
            assert usage(store).leftovers >= 10_000
            pruned = prune(store)
            assert len(pruned.leftovers) == 5
            assert pruned.freed >= 10_000
            assert len(os.listdir(ingest)) == 3 + 2  # what is being made, and what is strange
        for path in strange:
            path.unlink()
        assert leftovers(store) == []
        assert await check(store, PyUnpacker()) == []
        assert len(store.blobs.names()) == 3

    def test_more_leftovers_than_files_may_be_open(self, store: Store) -> None:
        store.layout.create()
        for number in range(100):
            Path(store.layout.ingest, f"trash-{number}", "a").mkdir(parents=True)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        try:
            assert len(prune(store).leftovers) == 100
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.listdir(store.layout.ingest) == []

    async def test_usage(self, store: Store) -> None:
        await put(store, make("base", "1"), "one")
        await put(store, make("base", "2"), "two")
        measured = usage(store, lambda image: ["box"] if "/one:" in str(image.references[0]) else [])
        assert sorted(row.containers for row in measured.images) == [0, 1]
        assert [row.shared for row in measured.images] == [10240, 10240]
        assert [row.unique for row in measured.images] == [10240, 10240]
        assert measured.layers == 3 * 10240
        assert 10240 < measured.reclaimable < 10240 + measured.blobs
        assert measured.leftovers == 0


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_nobody_else_may_change_a_store(mask: int, store: Store) -> None:
    """Whatever the caller's umask lets through: services run with none."""
    before = os.umask(mask)
    try:
        store.layout.create()
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode for path in [Path(store.layout.root), *Path(store.layout.root).rglob("*")]}
    assert [path for path, mode in modes.items() if mode & 0o022] == []
    assert [path for path, mode in modes.items() if path.is_dir() and mode & 0o700 != 0o700] == []


def test_what_has_no_room_is_named() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StoreError, match="store: cannot write /store/x: No space left on device"):
        write_all(fd, b"x", "/store/x")
    os.close(fd)


@pytest.mark.anyio
async def test_no_room_for_what_is_written_of_a_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes have found their place, but not the note of them."""

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.layout.create()
    digest = "sha256:" + "1" * 64
    async with store.blobs.part(digest, 10) as part:
        assert part is not None
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(StoreError, match=r"store: cannot write \S*\.part: No space left on device"):
            await part.segment(0).write([b"12345"], 5)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_lease_that_nobody_waits_for_any_more(tmp_path: Path) -> None:
    """asyncio's own cancelling, as by Ctrl-C, takes no notice of a shield: the thread's result is lost."""
    store = make_store(tmp_path)
    store.layout.create()
    begun, may_end = threading.Event(), threading.Event()

    def work() -> Lease:
        lease = store.lease([])
        begun.set()
        may_end.wait(10)
        return lease

    task = asyncio.ensure_future(anyio.to_thread.run_sync(work))
    await anyio.to_thread.run_sync(begun.wait)
    assert len(os.listdir(store.layout.leases)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    leases = store.layout.leases
    # The thread ends, and drops it.
    await anyio.to_thread.run_sync(lambda: wait_until(lambda: not os.listdir(leases), folders=[leases]))
