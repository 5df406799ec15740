"""The same archives through umoci, GNU tar and us: the trees are equal, entry by entry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import tarballs
from tests.support.tarballs import Entry, archive, directory, hard_link, symlink
from tests.support.unpacking import Seen, survey, unpack_bytes

CORPUS: dict[str, list[Entry]] = {
    "kinds": [
        directory(b"./", 0o755, mtime=100),
        directory(b"./d", 0o1777, uid=1000, gid=1000, mtime=101),
        Entry(name=b"./d/suid", content=b"x" * 70_000, mode=0o4755, mtime=102),
        Entry(name=b"./d/sgid", mode=0o2755, uid=5, gid=6, mtime=103),
        symlink(b"./d/link", b"/absolute"),
        hard_link(b"./h", b"./d/suid"),
        Entry(name=b"./c", type=tarballs.CHAR, device=(1, 3), mode=0o666, mtime=104),
        Entry(name=b"./b", type=tarballs.BLOCK_DEVICE, device=(7, 300), mode=0o660, gid=6, mtime=105),
        Entry(name=b"./p", type=tarballs.FIFO, mode=0o600, mtime=106),
    ],
    "pax": [
        directory(b"."),
        Entry(name=b"long/" * 30 + b"name", content=b"1", pax={b"mtime": b"123.456789012"}),
        Entry(name=b"caf\xc3\xa9 cafe\xcc\x81", content=b"2", uid=2**31 - 7),
        Entry(name=b"xattr", pax={b"SCHILY.xattr.user.key": b"value\0\xff", b"SCHILY.xattr.trusted.t": b"1"}),
        symlink(b"s" * 90, b"t" * 300),
    ],
    "replaced": [
        directory(b"."),
        Entry(name=b"a", content=b"old"),
        Entry(name=b"a", content=b"new", mode=0o600),
        directory(b"d", 0o700),
        Entry(name=b"d/kept", content=b"k"),
        directory(b"d", 0o711, mtime=50),
        symlink(b"l", b"a"),
        Entry(name=b"l", content=b"a file"),
        Entry(name=b"f", content=b"a file"),
        directory(b"f"),
    ],
    "gnu": [
        directory(b"."),
        Entry(name=b"g" * 200, magic=b"ustar  \0", content=b"1"),
        replace(symlink(b"gl", b"t" * 150), magic=b"ustar  \0"),
        replace(hard_link(b"gh", b"g" * 200), magic=b"ustar  \0"),
    ],
    "sparse": [
        tarballs.gnu_sparse(b"gnu", 100_000, [(0, b"x" * 512), (65536, b"y" * 512), (100_000, b"")]),
        *(
            tarballs.pax_sparse(
                version.encode(), 100_000, [(512, b"x" * 512), (65536, b"y" * 512), (100_000, b"")], version
            )
            for version in ("0.0", "0.1", "1.0")
        ),
    ],
}


def comparable(tree: dict[bytes, Seen], implied: set[bytes]) -> dict[bytes, Seen]:
    """Without the times of directories that no entry spoke of, and, for umoci, of those that hold one."""
    return {name: replace(seen, mtime=0) if name in implied else seen for name, seen in tree.items()}


def implied(entries: list[Entry]) -> set[bytes]:
    named = {e.name.strip(b"./") for e in entries}
    parents = {b"/".join(n.split(b"/")[:at]) for n in named for at in range(1, n.count(b"/") + 1)}
    missing = parents - named
    return missing | {name.rpartition(b"/")[0] or b"." for name in missing}


def umoci_unpack(layers: list[bytes], work: Path) -> Path:
    """What umoci makes of an image with these layers."""
    layout = work / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(x).hexdigest()}" for x in layers]},
    }
    media = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": {"mediaType": f"{media}.config.v1+json", **put(json.dumps(config).encode())},
        "layers": [{"mediaType": f"{media}.layer.v1.tar+gzip", **put(gzip.compress(x))} for x in layers],
    }
    described = {"mediaType": f"{media}.manifest.v1+json", **put(json.dumps(manifest).encode())}
    described["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:x", work / "bundle"], check=True, capture_output=True)
    return work / "bundle" / "rootfs"


def ours(blob: bytes, directory: Path) -> dict[bytes, Seen]:
    outcome = unpack_bytes(blob, directory)
    assert outcome.message["event"] == "unpacked", outcome.error
    return survey(directory)


@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
@pytest.mark.parametrize("name", [name for name in CORPUS if name != "sparse"])  # umoci refuses those
def test_umoci(tmp_path: Path, name: str) -> None:
    entries = CORPUS[name]
    theirs = survey(umoci_unpack([archive(*entries)], tmp_path))
    mine = ours(archive(*entries), tmp_path / "layer")
    assert comparable(mine, implied(entries)) == comparable(theirs, implied(entries))


@pytest.mark.parametrize("name", CORPUS)
def test_gnu_tar(tmp_path: Path, name: str) -> None:
    """Run as root: owners and modes as they are in the archive."""
    entries = CORPUS[name]
    (tmp_path / "t").mkdir()
    command = ["tar", "-xpf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    subprocess.run(
        [*command, "-C", str(tmp_path / "t")], input=archive(*entries), check=True, capture_output=True, umask=0o022
    )
    theirs = survey(tmp_path / "t")
    mine = ours(archive(*entries), tmp_path / "layer")
    assert comparable(mine, implied(entries)) == comparable(theirs, implied(entries))


@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar", "v7", "oldgnu"])
@pytest.mark.parametrize("compression", ["--no-auto-compress", "--gzip"])
def test_archives_that_tar_writes(tmp_path: Path, format_: str, compression: str) -> None:
    """A real tree, written by GNU tar in each format, comes back as it was."""
    source = tmp_path / "source"
    ours(archive(*CORPUS["kinds"][:6], Entry(name=b"n" * 90, content=b"!")), source)
    if format_ in ("gnu", "pax"):
        with (source / "sparse").open("wb") as file:
            file.seek(5 << 20)
            file.write(b"end")
        (source / ("long" * 50)).write_bytes(b"l")
        (source / "é\udcff").write_bytes(b"e")
    sparse = ["--sparse"] if format_ in ("gnu", "pax") else []
    command = ["tar", "-cf", "-", "-C", str(source), compression, f"--format={format_}", *sparse, "."]
    blob = subprocess.run(command, check=True, capture_output=True).stdout
    before, after = survey(source), ours(blob, tmp_path / "layer")
    if format_ != "pax":  # whole seconds only
        before = {name: replace(seen, mtime=seen.mtime // 10**9 * 10**9) for name, seen in before.items()}
    assert after == before


def test_archives_that_python_writes(tmp_path: Path) -> None:
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", format=format_) as tar:
            for n in range(50):
                info = tarfile.TarInfo(f"dir{n % 3}/file{n}")
                info.size, info.uid, info.mtime = n, n, n
                tar.addfile(info, io.BytesIO(b"x" * n))
        seen = ours(buffer.getvalue(), tmp_path / str(format_))
        for n in range(50):
            file = seen[f"dir{n % 3}/file{n}".encode()]
            assert (file.content, file.owner, file.mtime) == (b"x" * n, (n, 0), n * 10**9)


@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
@pytest.mark.parametrize("first", [True, False], ids=["whiteouts first", "whiteouts last"])
def test_layers_together(tmp_path: Path, first: bool) -> None:
    """Two layers as overlay stacks ours, against umoci, which applies one after the other."""
    lower = [
        directory(b".", mtime=7),
        *(directory(b"%b" % n, mtime=8) for n in (b"hidden", b"opaque", b"both", b"kept")),
        *(Entry(name=b"%b/old" % n, content=b"old") for n in (b"hidden", b"opaque", b"both", b"kept")),
        Entry(name=b"file", content=b"old"),
        Entry(name=b"replaced", content=b"old"),
    ]
    marks = [Entry(name=n) for n in (b".wh.hidden", b".wh.file", b".wh.both", b".wh.replaced", b"kept/.wh.missing")]
    own = [
        directory(b".", mtime=9),
        directory(b"opaque", mtime=10),
        Entry(name=b"opaque/.wh..wh..opq"),
        Entry(name=b"opaque/new", content=b"new"),
        directory(b"both", 0o700, mtime=11),
        Entry(name=b"both/new", content=b"new"),
        Entry(name=b"replaced", content=b"new"),
        directory(b"kept", mtime=12),
    ]
    upper = [own[0], *marks, *own[1:]] if first else [*own, *marks]
    theirs = survey(umoci_unpack([archive(*lower), archive(*upper)], tmp_path))
    ours(archive(*lower), tmp_path / "lower")
    ours(archive(*upper), tmp_path / "upper")
    merged = tmp_path / "merged"
    merged.mkdir()
    options = f"lowerdir={tmp_path}/upper:{tmp_path}/lower"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        mine = survey(merged)
    finally:
        subprocess.run(["umount", merged], check=True)

    def shape(tree: dict[bytes, Seen]) -> dict[bytes, Seen]:
        return {name: replace(seen, mtime=0, links=(), xattrs=()) for name, seen in tree.items()}

    assert shape(mine) == shape(theirs)
