"""What archives say about the layers below."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import tarballs
from tests.support.tarballs import Entry, archive, directory, symlink
from tests.support.unpacking import survey, unpack_bytes, unpack_entries

OPAQUE = ("trusted.overlay.opaque", b"y")


def test_whiteouts(tmp_path: Path) -> None:
    target = tmp_path / "layer"
    outcome = unpack_bytes(
        archive(
            directory(b"d"),
            Entry(name=b"d/.wh.file"),
            Entry(name=b".wh.top"),
            Entry(name=b"implied/.wh.x"),
            directory(b"o", mtime=4),
            Entry(name=b"o/.wh..wh..opq"),
            Entry(name=b"o/new"),
            Entry(name=b".wh..wh.plnk"),
            Entry(name=b".wh..wh.aufs/x"),
            directory(b".wh..wh.orph"),
        ),
        target,
    )
    seen = survey(target)
    assert all(seen[n].whiteout for n in (b"d/file", b"top", b"implied/x"))
    assert seen[b"o"].xattrs == (OPAQUE,)
    assert seen[b"o"].mtime == 4 * 10**9
    assert not any(b".wh." in name for name in seen)
    assert outcome.message["opaque"] == 0


def test_user_attributes_without_root(tmp_path: Path) -> None:
    blob = archive(directory(b"o"), Entry(name=b"o/.wh..wh..opq"))
    unpack_bytes(blob, tmp_path / "layer", user_xattrs=True)
    assert survey(tmp_path / "layer")[b"o"].xattrs == (("user.overlay.opaque", b"y"),)


@pytest.mark.parametrize("name", [b".", b"a/..", b"up", b"top/sub/../up", b"top/top/root/"])
def test_opaque_root(tmp_path: Path, name: bytes) -> None:
    """Overlay does not look for marks there: it has to be told, whatever the archive calls it."""
    links = [symlink(b"up", b".."), symlink(b"top", b"/"), symlink(b"root", b"sub/.."), directory(b"sub")]
    outcome = unpack_bytes(archive(*links, Entry(name=name + b"/.wh..wh..opq"), Entry(name=b"f")), tmp_path / "layer")
    assert outcome.message["opaque"] == 1
    outcome = unpack_bytes(archive(*links, Entry(name=b"top/sub/.wh..wh..opq")), tmp_path / "other")
    assert outcome.message["opaque"] == 0


@pytest.mark.parametrize("first", [True, False], ids=["whiteout first", "whiteout last"])
def test_what_the_layer_has_itself_stays(tmp_path: Path, first: bool) -> None:
    """Whiteouts hide what lower layers have. A directory of the layer is opaque then: nothing shines through."""
    marks = [Entry(name=b".wh." + name) for name in (b"file", b"link", b"dir", b"implied")]
    own = [
        Entry(name=b"file", content=b"f"),
        symlink(b"link", b"file"),
        directory(b"dir", 0o700),
        Entry(name=b"dir/f"),
        Entry(name=b"implied/f"),
    ]
    seen = unpack_entries(tmp_path, *(marks + own if first else own + marks))
    assert (seen[b"file"].kind, seen[b"link"].kind) == ("file", "symlink")
    assert seen[b"dir"].xattrs == seen[b"implied"].xattrs == (OPAQUE,)
    assert (seen[b"dir"].mode, seen[b"implied"].mode) == (0o700, 0o755)
    assert {b"dir/f", b"implied/f"} <= seen.keys()


def test_a_device_that_is_a_whiteout(tmp_path: Path) -> None:
    """It is what it is to overlay; a later entry of the name replaces it."""
    device = Entry(name=b"w", type=tarballs.CHAR, device=(0, 0), mode=0)
    seen = unpack_entries(
        tmp_path, device, replace(device, name=b"f"), Entry(name=b"f"), replace(device, name=b"d"), directory(b"d")
    )
    assert seen[b"w"].whiteout
    assert seen[b"f"].kind == "file"
    assert seen[b"d"].xattrs == (OPAQUE,)
