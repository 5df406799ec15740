"""The check of a store: what is wrong is found, and mended where that is asked for."""

from __future__ import annotations

# ruff: noqa: ASYNC240 - the store itself is blocking, and so are its tests
import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from crungo.image.blobs import Blobs
from crungo.image.check import check
from crungo.image.collect import documents
from crungo.image.imageconfig import ImageConfig
from crungo.image.locks import open_locked
from crungo.image.manifest import Manifest
from crungo.image.refs import RefRecord, Refs
from crungo.image.store import Store
from crungo.image.trees import remove_tree
from crungo.image.usage import prune, usage
from tests.support.pyunpacker import PyUnpacker, PyUnpacking
from tests.support.smallpulls import leftovers, make_store, spoil
from tests.unit.test_store import everything, make, put


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

    @pytest.mark.parametrize("harm", [b"", b"{}", b"[", None])
    async def test_index(self, harm: bytes | None, store: Store) -> None:
        await put(store, make("1"), "one")
        index = Path(store.layout.index)
        right = index.read_bytes()
        index.unlink()
        if harm is not None:
            index.write_bytes(harm)
        for mended in (False, True):
            [problem] = await check(store, repair=mended)
            assert (problem.kind, problem.what, problem.mended) == ("name", str(index), mended)
        assert await check(store) == []
        assert index.read_bytes() == right

    @pytest.mark.parametrize("harm", ["missing", "damaged"])
    async def test_listed_manifest(self, harm: str, store: Store) -> None:
        await put(store, make("1", flavour="docker"), "one")
        [entry] = json.loads(Path(store.layout.index).read_bytes())["manifests"]
        blob = Path(store.layout.blob(entry["digest"]))
        body = blob.read_bytes()
        blob.unlink()
        if harm == "damaged":
            blob.write_bytes(body[:-1] + b"!")
        [problem] = await check(store)
        assert (problem.kind, problem.mended) == ("image" if harm == "missing" else "blob", False)
        assert all(problem.mended for problem in await check(store, repair=True))
        assert await check(store) == []
        assert blob.read_bytes() == body

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

    @pytest.mark.parametrize(
        "place", ["refs/{name}", "index.json", "{manifest}", "{configuration}", "{layer}", "{record}"]
    )
    @pytest.mark.parametrize("kind", ["directory", "link", "fifo", "socket"])
    async def test_what_is_not_a_file(self, place: str, kind: str, store: Store) -> None:
        """It is found, and mended; it keeps nobody from using other images, and nobody waits for it."""
        await put(store, make("2"), "two")
        image = await put(store, make("1"), "one")
        path = Path(
            store.layout.root,
            place.format(
                name="docker.io%2Flibrary%2Fone%3Alatest",
                manifest=store.layout.blob(image.digest),
                configuration=store.layout.blob(image.id),
                layer=store.layout.blob(image.manifest.layers[0].digest),
                record=f"{store.layout.layer(image.manifest.layers[0].digest)}/record.json",
            ),
        )
        path.unlink()
        if kind == "directory":
            (path / "below").mkdir(parents=True)
        elif kind == "link":
            path.symlink_to(store.layout.root)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            os.mknod(path, stat.S_IFSOCK | 0o600)
        assert "two" in {name.familiar_name for found in store.images() for name in found.references}
        with store.hold(store.image("two")):
            assert usage(store, store.in_use()).leftovers == 0
        assert await check(store, PyUnpacker()) != []
        assert all(problem.mended for problem in await check(store, PyUnpacker(), repair=True))
        assert await put(store, make("1"), "one") == image
        assert await check(store, PyUnpacker()) == []

    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    @pytest.mark.parametrize("body", [b"", bytes(100), b"{", b"{}"])
    async def test_what_other_tools_read(self, name: str, body: bytes, store: Store) -> None:
        await put(store, make("1"), "one")
        file = Path(store.layout.root, name)
        right = file.read_bytes()
        file.write_bytes(body)
        assert [(problem.kind, problem.what) for problem in await check(store)] == [("name", str(file))]
        assert [problem.mended for problem in await check(store, repair=True)] == [True]
        assert file.read_bytes() == right
        assert await check(store) == leftovers(store) == []

    async def test_what_other_tools_read_is_put_right(self, store: Store) -> None:
        """A process that is killed between the record and the index leaves no damage."""
        await put(store, make("1"), "one")
        index = Path(store.layout.index)
        early = index.read_bytes()
        await put(store, make("2"), "two")
        right = index.read_bytes()
        index.write_bytes(early)
        assert await check(store) == []
        assert index.read_bytes() == right

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


def is_locked(store: Store) -> bool:
    fd = open_locked(store.layout.lock)
    if fd is not None:
        os.close(fd)
    return fd is None


class Meanwhile(PyUnpacker):
    """Something else happens while the first layer is unpacked."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens = [happens]

    @asynccontextmanager
    async def unpack(
        self, blob_fd: int, directory: str, *, media_type: str, limit: int, size: int | None = None
    ) -> AsyncIterator[PyUnpacking]:
        while self._happens:
            self._happens.pop()()
        async with super().unpack(blob_fd, directory, media_type=media_type, limit=limit, size=size) as unpacking:
            yield unpacking


@pytest.mark.anyio
class TestMeanwhile:
    """Others pull and remove images while a store is checked."""

    @pytest.mark.parametrize("repair", [False, True])
    async def test_what_is_removed_is_not_missing(self, repair: bool, store: Store) -> None:
        await put(store, make("1", "2", "3"), "one")
        assert await check(store, Meanwhile(lambda: store.remove("one")), repair=repair) == []
        assert everything(store) == leftovers(store) == []

    @pytest.mark.parametrize("repair", [False, True])
    async def test_what_is_removed_and_pulled_again(self, repair: bool, store: Store) -> None:
        """The pull has only begun: what it keeps is not here yet."""
        image = await put(store, make("1", "2"), "one")
        with ExitStack() as leases:

            def happens() -> None:
                store.remove("one")
                leases.enter_context(store.keep(image))

            assert await check(store, Meanwhile(happens), repair=repair) == []
            assert everything(store) == []

    async def test_what_is_removed_stays_away(self, store: Store) -> None:
        image = await put(store, make("1"), "one")
        spoil(image)
        assert await check(store, Meanwhile(lambda: store.remove("one")), repair=True) == []
        assert everything(store) == leftovers(store) == []

    @pytest.mark.parametrize("repair", [False, True])
    async def test_names_that_go(self, repair: bool, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        await put(store, make("1"), "one")
        await put(store, make("2"), "two")
        look = Refs.all

        def look_early(self: Refs) -> list[RefRecord]:
            found = look(self)
            if not is_locked(store):
                monkeypatch.setattr(Refs, "all", look)
                store.remove("one")
            return found

        monkeypatch.setattr(Refs, "all", look_early)
        assert await check(store, PyUnpacker(), repair=repair) == []
        assert [str(name) for image in store.images() for name in image.references] == ["docker.io/library/two:latest"]

    async def test_no_pull_comes_between_look_and_repair(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whose documents are missing loses its name, unless a pull has just brought them back."""
        image = await put(store, make("1"), "one")
        Path(store.layout.blob(image.id)).unlink()
        locked = []

        def look(blobs: Blobs, record: RefRecord) -> tuple[Manifest, ImageConfig]:
            locked.append(is_locked(store))
            return documents(blobs, record)

        monkeypatch.setattr("crungo.image.check.documents", look)
        assert [problem.mended for problem in await check(store, repair=True)] == [True]
        assert locked == [True]
