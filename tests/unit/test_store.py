"""The store without a network: names, ids, removal, garbage, locks and trees."""

# ruff: noqa: ASYNC240 - the store itself is blocking, and so are its tests

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from crungo.errors import ImageInUse, ImageNotKnown, StoreError, UsageError
from crungo.image import locks
from crungo.image.check import check
from crungo.image.layout import write_all
from crungo.image.leases import Lease
from crungo.image.locks import is_current, lock, open_locked, try_lock
from crungo.image.manifest import Descriptor
from crungo.image.platform import Platform
from crungo.image.reference import Reference
from crungo.image.refs import RefRecord
from crungo.image.store import Image, Store
from crungo.image.trees import differences, dispose, entries, remove_tree, tree_size
from crungo.image.usage import prune, usage
from tests.support.events import wait_until
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image
from tests.support.pyunpacker import PyUnpacker
from tests.unit.test_pull import leftovers, make_store, noise, spoil

PLATFORM = Platform.parse("linux/amd64")


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


def make(*contents: str) -> Source:
    return make_image([Layer().directory("d").file("d/0", text) for text in contents])


def everything(store: Store) -> list[str]:
    """What the store holds of images."""
    return store.blobs.names() + store.layers.names() + os.listdir(store.layout.refs)


def listed(store: Store) -> list[str]:
    entries = json.loads(Path(store.layout.index).read_bytes())["manifests"]
    return sorted(entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "-") for entry in entries)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


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

    async def test_empty_store(self, store: Store) -> None:
        assert store.images() == []
        assert usage(store).images == ()
        assert await check(store) == []
        with pytest.raises(ImageNotKnown):
            store.image("x")
        assert not os.path.exists(store.layout.root)


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
            assert prune(store, images="all", in_use=store.in_use()).deleted == ()
        assert prune(store, images="all", in_use=store.in_use(), wanted=lambda _: False).deleted == ()
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

    async def test_leftovers(self, store: Store) -> None:
        await put(store, make("1"), "one")
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
            assert len(os.listdir(ingest)) == 3  # what is being made
        assert leftovers(store) == []
        assert await check(store, PyUnpacker()) == []
        assert len(store.blobs.names()) == 3

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


@pytest.mark.anyio
class TestCheck:
    async def test_blob(self, store: Store) -> None:
        source = make("1", "2")
        await put(store, source, "one")
        digest = source.document["layers"][0]["digest"]
        Path(store.layout.blob(digest)).write_bytes(source.blobs[digest][:-1] + b"!")
        found = await check(store)
        assert [(problem.kind, problem.what, problem.mended) for problem in found] == [("blob", digest, False)]
        assert [problem.mended for problem in await check(store, repair=True)] == [True]
        assert [problem.kind for problem in await check(store)] == ["image"]

    async def test_documents(self, store: Store) -> None:
        source = make("1")
        image = await put(store, source, "one")
        Path(store.layout.blob(image.id)).unlink()
        assert [problem.kind for problem in await check(store)] == ["image"]
        assert [problem.mended for problem in await check(store, repair=True)] == [True]
        assert await check(store) == []
        prune(store)
        assert everything(store) == []

    @pytest.mark.parametrize("harm", ["content", "missing", "added", "mode", "layer", "record"])
    async def test_layer(self, harm: str, store: Store) -> None:
        image = await put(store, make("1", "2"), "one")
        victim = Path(image.layers[1])
        if harm == "content":
            status = (victim / "d/0").stat()
            (victim / "d/0").write_bytes(b"9")
            os.utime(victim / "d/0", ns=(status.st_atime_ns, status.st_mtime_ns))
        elif harm == "missing":
            (victim / "d/0").unlink()
        elif harm == "added":
            (victim / "d/1").write_bytes(b"")
        elif harm == "mode":
            (victim / "d/0").chmod(0o4755)
        elif harm == "layer":
            remove_tree(str(victim.parent))
        else:
            (victim.parent / "record.json").write_bytes(b"{}")
        unpacker = PyUnpacker()
        [problem] = await check(store, unpacker)
        assert (problem.kind, problem.what, problem.mended) == ("layer", image.manifest.layers[1].digest, False)
        [problem] = await check(store, unpacker, repair=True, in_use=lambda _: True)
        assert (problem.mended, "in use" in problem.message) == (False, True)
        [problem] = await check(store, unpacker, repair=True)
        assert problem.mended
        assert await check(store, unpacker) == []
        assert (victim / "d/0").read_bytes() == b"2"
        assert leftovers(store) == []

    async def test_after_a_restart(self, tmp_path: Path) -> None:
        image = await put(make_store(tmp_path, boot="one"), make("1", "2"), "one")
        spoil(image)
        store = make_store(tmp_path, boot="two")
        unpacker = PyUnpacker()
        found = await check(store, unpacker)
        assert ["differs in" in problem.message for problem in found] == [True, False]
        assert all(problem.mended for problem in await check(store, unpacker, repair=True))
        assert await check(store, unpacker) == []
        assert store.untrusted(image) == ()


def test_what_has_no_room_is_named() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StoreError, match="store: cannot write /store/x: No space left on device"):
        write_all(fd, b"x", "/store/x")
    os.close(fd)


# ---- locks


@pytest.mark.anyio
async def test_lock_waits_and_looks_again(tmp_path: Path) -> None:
    path = str(tmp_path / "object")
    first = await lock(path)
    got: list[int] = []

    async def second() -> None:
        got.append(await lock(path))

    async with anyio.create_task_group() as group:
        group.start_soon(second)
        await anyio.sleep(0.05)
        assert got == []
        os.rename(path, path + ".done")  # what waiting was for has its name now
        os.close(first)
    assert is_current(got[0], path)
    assert not is_current(got[0], path + ".done")
    os.close(got[0])


@pytest.mark.anyio
async def test_cancelled_waiting_gives_the_lock_back(tmp_path: Path) -> None:
    path = str(tmp_path / "directory")
    first = await lock(path, directory=True)
    before = len(os.listdir("/proc/self/fd"))
    with anyio.fail_after(30), anyio.move_on_after(0.05):
        await lock(path, directory=True)
    os.close(first)
    with anyio.fail_after(5):
        os.close(await lock(path, directory=True))
        while len(os.listdir("/proc/self/fd")) >= before:  # noqa: ASYNC110 - a thread's end has no event
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_lock_of_a_directory_that_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have it when it is made, and have removed it at the next look."""
    path = str(tmp_path / "x")
    make = os.mkdir
    others = [path]

    def mkdir(name: str, mode: int = 0o777) -> None:
        make(name, mode)
        if others and name == others[0]:
            os.rmdir(others.pop())
            raise FileExistsError(name)

    monkeypatch.setattr(os, "mkdir", mkdir)
    os.close(await lock(path, directory=True))
    assert not others


def test_exit_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    assert try_lock(fd)
    script = (
        "import anyio, sys; from crungo.image.locks import lock\n"
        "async def main():\n    with anyio.move_on_after(0.1):\n        await lock(sys.argv[1])\n"
        "anyio.run(main)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=30)
    os.close(fd)


def test_open_locked(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    assert open_locked(path) is None
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert try_lock(fd)
    assert open_locked(path) is None
    os.close(fd)
    fd_or_none = open_locked(path)
    assert fd_or_none is not None
    os.close(fd_or_none)


@pytest.mark.anyio
async def test_lock_fails_as_the_system_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = await lock(str(tmp_path / "x"))

    def broken(*_: object) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr(locks, "try_lock", lambda _: False)
    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="no locks"):
        await lock(str(tmp_path / "x"))
    os.close(fd)


# ---- trees


def deep(path: Path, depth: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        fd = inner
    os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tree"
    path.mkdir()
    yield path
    remove_tree(str(path))


def test_deep_tree(tree: Path) -> None:
    deep(tree, 3000)  # deeper than the interpreter's stack, and far longer than PATH_MAX
    before = len(os.listdir("/proc/self/fd"))
    assert sum(1 for _ in entries(str(tree))) == 6001
    assert differences(str(tree), str(tree)) == []
    assert tree_size(str(tree)) > 0
    remove_tree(str(tree))
    assert not tree.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_are_not_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("sings")
    (tree / "to-directory").symlink_to(outside)
    (tree / "to-file").symlink_to(outside / "canary")
    (tree / "sub").mkdir()
    (tree / "sub/.gone-0").mkdir()
    (tree / "sub/.gone-0/x").mkdir()
    (tree / ".gone-0/inner/y").mkdir(parents=True)
    (tree / ".gone-1").write_text("")
    (tree / b"\xff\xfe".decode("utf-8", "surrogateescape")).mkdir()
    os.mkfifo(tree / "fifo")
    remove_tree(str(tree))
    assert (outside / "canary").read_text() == "sings"
    (tmp_path / "link").symlink_to(outside)
    remove_tree(str(tmp_path / "link"))
    assert (outside / "canary").read_text() == "sings"
    dispose(str(tmp_path / "link"))


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_read_only_tree_of_another_user(tree: Path) -> None:
    for path in ("a", "a/b", "a/b/c"):
        (tree / path).mkdir()
    (tree / "a/b/c/file").write_text("")
    for path in ("", "a", "a/b", "a/b/c", "a/b/c/file"):
        os.chown(tree / path, 1000, 1000)
    for path in ("a/b/c", "a/b", "a"):
        (tree / path).chmod(0)
    for parent in tree.parents:
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    script = (
        "import os, sys; from crungo.image import trees\n"
        "os.setgroups([]); os.setgid(1000); os.setuid(1000)\n"
        "try: trees.remove_tree(sys.argv[1])\n"
        "except PermissionError: pass  # the top itself is in a directory of root's\n"
        "print(os.listdir(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tree)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_differences(tree: Path, tmp_path: Path) -> None:
    (tree / "a").write_bytes(noise(100))
    os.link(tree / "a", tree / "b")
    (tree / "c").symlink_to("a")
    (tree / "d").mkdir()
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", tree, other], check=True)
    assert differences(str(tree), str(other)) == []
    (other / "c").unlink()
    (other / "c").symlink_to("b")
    (other / "d").rmdir()
    (other / "e\n").write_text("")
    os.utime(other, ns=(0, tree.stat().st_mtime_ns))
    found = differences(str(tree), str(other))
    assert found == ["'/c': differs in target, time", "'/d': should not be there", "'/e\\n': is missing"]
    assert differences(str(tree), str(other), most=1) == found[:1]


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
