"""Whole images of several layers, pulled from a real registry: what a container sees is what umoci makes of them.

Each layer is unpacked by itself, as by docker and podman, and not onto those below it, as by umoci. That shows in two
cases, which the corpus leaves out. A directory that a layer has something in but does not tell of is root's and of mode
0755, whatever it is below. And a whiteout of what is not there, in a directory that no lower layer has, is listed.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from crungo.image.store import Image, Store
from crungo.paths import Roots
from tests.support.command import Crungo
from tests.support.image import Image as Source
from tests.support.image import busybox_layers, make_image, push, write_layout
from tests.support.pulling import Pulls, spawner
from tests.support.registry import Registry
from tests.support.tarballs import BLOCK_DEVICE, CHAR, FIFO, Entry, archive, directory, hard_link, symlink
from tests.support.unpacking import Seen, survey

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
]
TOP = b"corpus"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def pulls(tmp_path: Path) -> AsyncIterator[Pulls]:
    async with spawner(Roots(root=f"{tmp_path}/spawner", run=f"{tmp_path}/run")) as process:
        yield Pulls(process)


def below(*entries: Entry) -> bytes:
    """An archive of these entries below the corpus's directory; hard links likewise."""
    moved = [
        replace(e, name=TOP + b"/" + e.name, link=TOP + b"/" + e.link if e.type == b"1" else e.link) for e in entries
    ]
    return archive(directory(TOP, mtime=5), *moved)


def file(name: bytes, content: bytes = b"", **rest: object) -> Entry:
    return replace(Entry(name=name, content=content), **rest)  # type: ignore[arg-type]


def whiteout(name: bytes) -> Entry:
    before, slash, last = name.rpartition(b"/")
    return Entry(name=before + slash + b".wh." + last)


OPAQUE = b".wh..wh..opq"

CORPUS: dict[str, list[bytes]] = {
    "kinds": [
        below(
            directory(b"d", 0o1777, uid=1000, gid=50, mtime=11),
            file(b"d/suid", b"x" * 70_000, mode=0o4755, mtime=12),
            file(b"d/sgid", mode=0o2711, uid=5, gid=6, mtime=13),
            hard_link(b"linked", b"d/suid"),
            symlink(b"s", b"/absolute/../x"),
            Entry(name=b"c", type=CHAR, device=(1, 3), mode=0o666),
            Entry(name=b"b", type=BLOCK_DEVICE, device=(7, 300), mode=0o660, gid=6),
            Entry(name=b"p", type=FIFO, mode=0o600),
            file(b"x", pax={b"SCHILY.xattr.user.key": b"value\0\xff", b"mtime": b"123.456789012"}),
            file(b"caf\xc3\xa9 \xff", b"bytes"),
        ),
        below(directory(b"d", 0o700, uid=1, gid=1, mtime=20), file(b"d/suid", b"new", mode=0o600, mtime=21)),
    ],
    "taken away": [
        below(
            *(directory(b"%b" % n, mtime=8) for n in (b"hidden", b"opaque", b"both", b"kept")),
            *(file(b"%b/old" % n, b"old") for n in (b"hidden", b"opaque", b"both", b"kept")),
            file(b"gone", b"old"),
        ),
        below(whiteout(b"hidden"), whiteout(b"gone"), directory(b"opaque", mtime=9), file(b"opaque/" + OPAQUE)),
        below(directory(b"hidden", mtime=10), file(b"hidden/new"), file(b"gone", b"back"), whiteout(b"kept")),
        below(whiteout(b"hidden"), directory(b"opaque", mtime=12), file(b"opaque/again")),
    ],
    "other kinds": [
        below(file(b"file"), directory(b"dir", mtime=7), file(b"dir/in"), symlink(b"link", b"dir"), file(b"f2")),
        below(directory(b"file", mtime=8), file(b"file/in"), symlink(b"dir", b"file"), directory(b"link", mtime=8)),
        below(file(b"dir", b"a file at last"), file(b"link/in", b"below what was a link"), symlink(b"f2", b"file")),
    ],
    "twice the same": [below(file(b"a", b"1")), below(file(b"a", b"2")), below(file(b"a", b"1"))],
    "not told of": [
        below(directory(b"usr", mtime=7), directory(b"usr/share", mtime=7), file(b"usr/share/a")),
        below(file(b"usr/share/b"), file(b"opt/new/c")),
        below(file(b"opt/new/d"), whiteout(b"usr/share/a")),
    ],
}
CORPUS["hides all"] = [
    below(file(b"old"), directory(b"d", mtime=1), file(b"d/old")),
    archive(Entry(name=OPAQUE), directory(TOP)),
    below(file(b"new")),
]


def drawn(seed: int) -> list[bytes]:
    """Random layers over few names, so that they meet."""
    dice = random.Random(seed)
    layers = []
    there: dict[bytes, bool] = {}  # names of the layers so far; whether each is a directory
    for _ in range(dice.randrange(2, 6)):
        gone = set(dice.sample(sorted(there), min(len(there), dice.randrange(3))))
        gone = {name for name in gone if not any(name.startswith(other + b"/") for other in gone)}
        entries: dict[bytes, Entry] = {}
        opaque = set()

        def tell_of(folders: list[bytes], entries: dict[bytes, Entry] = entries) -> None:
            for name in folders:
                mode = dice.choice([0o755, 0o700, 0o1777])
                entries.setdefault(name, directory(name, mode, mtime=dice.randrange(99), uid=dice.randrange(3)))

        for name in gone:
            tell_of(parents(name))
        for _ in range(dice.randrange(1, 12)):
            name = b"/".join(dice.choice([b"a", b"b", b"c"]) for _ in range(dice.randrange(1, 4)))
            above = parents(name)
            blocked = any(entries[other].type != b"5" for other in above if other in entries)
            if blocked or name in entries or any((name + b"/").startswith(other + b"/") for other in gone):
                continue
            tell_of(above)
            kind = dice.choice(["file", "file", "directory", "link", "opaque"])
            if any(other.startswith(name + b"/") for other in gone):
                kind = "directory"
            if kind == "file":
                entries[name] = file(name, dice.randbytes(3), mode=dice.choice([0o644, 0o4711]), uid=dice.randrange(3))
            elif kind == "link":
                entries[name] = symlink(name, dice.choice([b"a", b"../b", b"/c"]))
            else:
                entries[name] = directory(name, dice.choice([0o755, 0o711]), mtime=dice.randrange(99))
                opaque |= {name} if kind == "opaque" else set()
        marks = [whiteout(name) for name in gone] + [Entry(name=name + b"/" + OPAQUE) for name in opaque]
        folders = [entry for entry in entries.values() if entry.type == b"5"]
        rest = [entry for entry in entries.values() if entry.type != b"5"]
        layers.append(below(*folders, *marks, *rest))
        hidden = gone | opaque | {entry.name for entry in rest}
        there = {name: kind for name, kind in there.items() if not _under(name, hidden)}
        there |= {name: entry.type == b"5" for name, entry in entries.items()}
    return layers


def parents(name: bytes) -> list[bytes]:
    parts = name.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


def _under(name: bytes, hidden: set[bytes]) -> bool:
    return any((name + b"/").startswith(other + b"/") for other in hidden)


CORPUS |= {f"drawn {seed}": drawn(seed) for seed in range(24)}


def umoci(source: Source, work: Path) -> dict[bytes, Seen]:
    write_layout(source, work / "layout", "x")
    command = ["umoci", "unpack", "--image", f"{work}/layout:x", str(work / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    return survey(work / "bundle" / "rootfs" / os.fsdecode(TOP))


@contextmanager
def mounted(image: Image, work: Path) -> Iterator[Path]:
    """The layers as overlay stacks them, read-only."""
    merged, empty = work / "merged", work / "empty"
    merged.mkdir()
    empty.mkdir()
    options = f"lowerdir={':'.join([*reversed(image.layers), str(empty)])}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


def shape(tree: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """All but the times of directories: umoci's depend on what was done in them."""
    return {name: replace(seen, mtime=0 if seen.kind == "directory" else seen.mtime) for name, seen in tree.items()}


@pytest.mark.parametrize("name", CORPUS)
async def test_layers_as_umoci_applies_them(name: str, tmp_path: Path, registry: Registry, pulls: Pulls) -> None:
    source = make_image(CORPUS[name])
    store = Store(Roots(root=f"{tmp_path}/store", run=f"{tmp_path}/run"))
    image = await pulls(push(source, registry.address, "tree"), store)
    theirs = umoci(source, tmp_path)
    with mounted(image, tmp_path) as merged:
        mine = survey(merged / os.fsdecode(TOP))
    assert shape(mine) == shape(theirs)


def listed(stream: bytes) -> dict[bytes, tuple[object, ...]]:
    """The entries of a tar archive."""
    found: dict[bytes, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(stream), errors="surrogateescape", encoding="utf-8") as opened:
        for member in opened:
            data = opened.extractfile(member) if member.isreg() else None
            name = os.fsencode(member.name)
            kind = b"0" if member.islnk() else member.type
            content = data.read() if data is not None else b"" if member.islnk() else os.fsencode(member.linkname)
            device = (member.devmajor, member.devminor) if member.isdev() and not member.isfifo() else ()
            time = member.mtime if not member.isdir() else 0
            found[name] = (kind, member.mode, member.uid, member.gid, time, device, content)
    return found


@pytest.mark.parametrize("name", ["kinds", "taken away", "other kinds", "hides all", "twice the same", "not told of"])
def test_containers_see_what_umoci_makes(
    name: str, tmp_path: Path, registry: Registry, busybox: Path, fresh_crungo: Crungo
) -> None:
    """Read by tar inside a container, from the layers as they are mounted there."""
    system = busybox_layers(busybox)
    source = make_image([*system, *CORPUS[name], *(system if name == "hides all" else ())])
    reference = push(source, registry.address, "seen")
    inside = fresh_crungo.binary("run", "-q", reference, "tar", "-c", "-C", "/", TOP.decode(), check=0).stdout
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    umoci(source, theirs)
    command = ["tar", "-c", "--format=gnu", "-C", str(theirs / "bundle" / "rootfs"), TOP.decode()]
    outside = subprocess.run(command, check=True, capture_output=True).stdout
    seen, expected = listed(inside), listed(outside)
    # Which of two names is the file and which the link depends on the order that a directory lists them in.
    links = {entry for entry, value in (*seen.items(), *expected.items()) if value[0] == b"0" and value[6] == b""}
    assert seen.keys() == expected.keys()
    assert {k: v[:6] for k, v in seen.items()} == {k: v[:6] for k, v in expected.items()}
    assert {k: v for k, v in seen.items() if k not in links} == {k: v for k, v in expected.items() if k not in links}


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
async def test_skopeo_reads_the_store(tmp_path: Path, registry: Registry, busybox: Path, pulls: Pulls) -> None:
    """The store is an OCI image layout: looked at, copied, and the copy pulled again with the same digest."""
    store = Store(Roots(root=f"{tmp_path}/store", run=f"{tmp_path}/run"))
    layers = busybox_layers(busybox)
    references = [
        push(make_image(layers), registry.address, "skopeo", "gzip"),
        push(make_image(layers, compression="zstd"), registry.address, "skopeo", "zstd"),
        push(make_image(layers, flavour="docker"), registry.address, "skopeo", "docker"),
    ]
    for reference in references:
        image = await pulls(reference, store)
        place = f"oci:{store.layout.root}:{reference}"
        looked = json.loads(_skopeo("inspect", place))
        assert looked["Layers"] == [layer.digest for layer in image.manifest.layers]
        assert looked["Env"] == list(image.config.env)
        assert json.loads(_skopeo("inspect", "--config", "--raw", place)) == json.loads(
            store.blobs.read(image.id, limit=1 << 20)
        )
        again = reference.replace("/skopeo:", "/again:")
        # Else skopeo may put in the place of a layer what it remembers of the same content in another compression.
        _skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", place, f"docker://{again}")
        copied = await pulls(again, Store(Roots(root=f"{tmp_path}/again", run=f"{tmp_path}/run")))
        assert copied.config == image.config
        assert [layer.digest for layer in copied.manifest.layers] == [layer.digest for layer in image.manifest.layers]
        if not reference.endswith(":docker"):  # which an OCI layout lists as an OCI manifest
            assert copied.digest == image.digest
        _skopeo("copy", place, f"dir:{tmp_path}/{reference.rpartition(':')[2]}")


def _skopeo(*words: str) -> bytes:
    done = subprocess.run(["skopeo", "--insecure-policy", *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
