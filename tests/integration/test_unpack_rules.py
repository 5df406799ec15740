"""What each kind of entry becomes, and in what order things may come."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tests.support import tarballs
from tests.support.tarballs import Entry, archive, directory, hard_link, symlink
from tests.support.unpacking import Seen, accepted, survey, unpack_bytes, unpack_entries

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep, revision 2


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_digests_and_sizes(tmp_path: Path, compression: str) -> None:
    """They cover the whole blob and the whole stream: also what follows the archive's end."""
    stream = archive(Entry(name=b"a", content=b"A" * 100_000)) + b"\0" * 3_000_000
    blob = {
        "none": stream,
        "gzip": gzip.compress(stream) + b"\0" * 100,
        "zstd": zstandard.compress(stream),
    }[compression]
    outcome = unpack_bytes(blob, tmp_path / "layer")
    assert outcome.message == {
        "event": "unpacked",
        "diff_id": f"sha256:{hashlib.sha256(stream).hexdigest()}",
        "unpacked_size": len(stream),
        "entries": 1,
        "opaque": False,
    }
    assert survey(tmp_path / "layer")[b"a"].content == b"A" * 100_000


def test_kinds(tmp_path: Path) -> None:
    seen = unpack_entries(
        tmp_path,
        directory(b"d", 0o750, uid=3, gid=4, mtime=11),
        Entry(name=b"d/f", content=b"text", mode=0o640, uid=1, gid=2, mtime=12),
        symlink(b"d/s", b"../nowhere"),
        hard_link(b"h", b"d/f"),
        Entry(name=b"c", type=tarballs.CHAR, device=(5, 1), mode=0o620, gid=5),
        Entry(name=b"b", type=tarballs.BLOCK_DEVICE, device=(4095, 1048575), mode=0o660),
        Entry(name=b"p", type=tarballs.FIFO, mode=0o600, mtime=13),
    )
    ns = 10**9
    assert seen[b"d"] == Seen(kind="directory", mode=0o750, owner=(3, 4), mtime=11 * ns, links=(b"d",))
    both = (b"d/f", b"h")
    assert seen[b"h"] == Seen(kind="file", mode=0o640, owner=(1, 2), mtime=12 * ns, content=b"text", links=both)
    assert (seen[b"d/s"].content, seen[b"d/s"].mtime) == (b"../nowhere", ns * ns)
    assert (seen[b"c"].kind, seen[b"c"].device, seen[b"c"].mode, seen[b"c"].owner) == ("char", (5, 1), 0o620, (0, 5))
    assert (seen[b"b"].kind, seen[b"b"].device) == ("block", (4095, 1048575))
    assert (seen[b"p"].kind, seen[b"p"].mtime) == ("fifo", 13 * ns)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0, 0o400])
@pytest.mark.parametrize("owner", [(0, 0), (1000, 1001)])
def test_modes(tmp_path: Path, mode: int, owner: tuple[int, int]) -> None:
    """The mode is the archive's: neither umask, nor chown, nor a setgid parent changes it."""
    uid, gid = owner
    before = os.umask(0o077)
    try:
        seen = unpack_entries(
            tmp_path,
            directory(b"g", 0o2777, gid=77),
            Entry(name=b"g/f", content=b"x" * 3000, mode=mode, uid=uid, gid=gid),
            directory(b"g/d", mode, uid=uid, gid=gid),
            Entry(name=b"g/d/p", type=tarballs.FIFO, mode=mode, uid=uid, gid=gid),
            symlink(b"g/s", b"x"),
        )
    finally:
        os.umask(before)
    for name in (b"g/f", b"g/d", b"g/d/p"):
        assert (seen[name].mode, seen[name].owner) == (mode, owner), name
    assert seen[b"g/s"].owner == (0, 0)
    assert (seen[b"g"].mode, seen[b"g"].owner) == (0o2777, (0, 77))


def test_a_directory_that_gets_its_group_later(tmp_path: Path) -> None:
    """What is cached of a parent must not outlive its second entry."""
    seen = unpack_entries(
        tmp_path,
        directory(b"g"),
        Entry(name=b"g/before"),
        directory(b"g", 0o2755, gid=77),
        Entry(name=b"g/after"),
    )
    assert seen[b"g/after"].owner == (0, 0)
    assert (seen[b"g"].mode, seen[b"g"].owner) == (0o2755, (0, 77))


@pytest.mark.parametrize("owner", [2**21 + 5, 2**32 - 2])
def test_huge_owners(tmp_path: Path, owner: int) -> None:
    text = b"%d" % owner
    seen = unpack_entries(
        tmp_path,
        Entry(name=b"base256", uid=owner, gid=owner, magic=b"ustar  \0"),
        Entry(name=b"pax", pax={b"uid": text, b"gid": text}),
    )
    assert seen[b"base256"].owner == seen[b"pax"].owner == (owner, owner)


@pytest.mark.parametrize("owner", [2**32 - 1, 2**32, -1, 2**63 - 1])
def test_impossible_owners(tmp_path: Path, owner: int) -> None:
    unpack_entries(tmp_path, Entry(name=b"f", uid=owner), error="layer entry 'f': its owner is out of range")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"1234567890.123456789", 1234567890_123456789),
        (b"0.5", 500_000_000),
        (b"-1", -(10**9)),
        (b"-1.25", -1_250_000_000),
        (b"-86400.000000001", -86400_000000001),
        (b"5000000000", 5 * 10**18),
    ],
)
def test_times(tmp_path: Path, text: bytes, ns: int) -> None:
    pax = {b"mtime": text}
    seen = unpack_entries(
        tmp_path,
        Entry(name=b"f", pax=pax),
        replace(directory(b"d"), pax=pax),
        Entry(name=b"d/later"),
        replace(symlink(b"s", b"x"), pax=pax),
        Entry(name=b"p", type=tarballs.FIFO, pax=pax),
        replace(directory(b"./"), pax=pax),
        Entry(name=b"last"),
    )
    assert {name: seen[name].mtime for name in (b"f", b"d", b"s", b"p", b".")} == dict.fromkeys(
        (b"f", b"d", b"s", b"p", b"."), ns
    )


def test_negative_time_in_base_256(tmp_path: Path) -> None:
    assert unpack_entries(tmp_path, Entry(name=b"f", mtime=-5, magic=b"ustar  \0"))[b"f"].mtime == -5 * 10**9


def test_names(tmp_path: Path) -> None:
    """Bytes stay as they are: no locale, no Unicode form, no case."""
    names = [
        b"caf\xc3\xa9",  # one character
        b"cafe\xcc\x81",  # two
        b"\xff\xfe latin-1 \xe9",
        b"new\nline",
        b"back\\slash",
        b" ",
        b"*",
        b"CASE",
        b"case",
        b"-rf",
        b"x" * 255,
        b"\xe2\x84\xaa kelvin",
    ]
    long = b"/".join([b"deep" * 20] * 20) + b"/\xc3\xa9"
    entries = []
    for at, name in enumerate([*names, long]):
        entries += [
            Entry(name=b"ustar/" + name, content=b"%d" % at),
            Entry(name=b"gnu/" + name, content=b"%d" % at, magic=b"ustar  \0"),
            Entry(name=b"x", pax={b"path": b"pax/" + name}, content=b"%d" % at),
            Entry(name=b"x", pax={b"hdrcharset": b"BINARY", b"path": b"bin/" + name}, content=b"%d" % at),
        ]
    seen = unpack_entries(tmp_path, *entries)
    for at, name in enumerate([*names, long]):
        for folder in (b"ustar/", b"gnu/", b"pax/", b"bin/"):
            assert seen[folder + name].content == b"%d" % at


@pytest.mark.parametrize("magic", [b"ustar\x0000", b"ustar  \0"])
def test_long_and_odd_links(tmp_path: Path, magic: bytes) -> None:
    target = b"t\xc3\xa9\xff/" * 50 + b"end"
    name = b"n" * 120
    seen = unpack_entries(
        tmp_path,
        replace(symlink(b"s", target), magic=magic),
        Entry(name=name, content=b"!", magic=magic),
        replace(hard_link(b"h", name), magic=magic),
    )
    assert seen[b"s"].content == target
    assert seen[b"h"].links == (b"h", name)


def test_prefix_and_old_formats(tmp_path: Path) -> None:
    seen = unpack_entries(
        tmp_path,
        Entry(name=b"name", extra=b"the/prefix", content=b"1"),
        Entry(name=b"v7", magic=b"", type=b"\0", content=b"2"),
        Entry(name=b"v7dir/", magic=b"", type=b"\0"),
        Entry(name=b"contiguous", type=b"7", content=b"3"),
        Entry(name=b"d\xc3\xa9/", type=b"0", pax={b"path": b"d\xc3\xa9/"}),
    )
    assert {seen[n].content for n in (b"the/prefix/name", b"v7", b"contiguous")} == {b"1", b"2", b"3"}
    assert seen[b"v7dir"].kind == seen[b"d\xc3\xa9"].kind == "directory"


@pytest.mark.parametrize("name", [b"./a/b", b"a//b", b"/a/b", b"a/./b", b"a/c/../b", b"//a/b", b"././/a/b/."])
def test_names_are_cleaned(tmp_path: Path, name: bytes) -> None:
    seen = unpack_entries(tmp_path, Entry(name=name, content=b"!"))
    assert seen[b"a/b"].content == b"!"
    assert (seen[b"a"].mode, seen[b"a"].owner) == (0o755, (0, 0)), "an implied parent"


@pytest.mark.parametrize("name", [b"./", b".", b"/", b"a/.."])
def test_the_root_itself(tmp_path: Path, name: bytes) -> None:
    seen = unpack_entries(tmp_path, directory(name, 0o711, uid=5, gid=6, mtime=9), Entry(name=b"f"))
    assert (seen[b"."].mode, seen[b"."].owner, seen[b"."].mtime) == (0o711, (5, 6), 9 * 10**9)


# Attributes ------------------------------------------------------------------------------------------------------


def test_xattrs(tmp_path: Path) -> None:
    """Also binary ones; after chown, which would remove capabilities; on whatever can have them."""
    pax = {
        b"SCHILY.xattr.security.capability": CAPABILITY,
        b"SCHILY.xattr.user.binary": b"a\0b\n=\xff",
        b"SCHILY.xattr.user.empty": b"",
        b"LIBARCHIVE.xattr.user.percent%20encoded": b"aGk",
    }
    trusted = {b"SCHILY.xattr.trusted.t": b"1", b"SCHILY.xattr.user.left-out": b"1"}
    seen = unpack_entries(
        tmp_path,
        Entry(name=b"f", pax=pax, uid=7, gid=7, mode=0o4755, content=b"x"),
        replace(directory(b"d"), pax={b"SCHILY.xattr.user.u": b"d"}),
        replace(symlink(b"d/s", b"f"), pax=trusted),
        Entry(name=b"d/c", type=tarballs.CHAR, device=(1, 3), pax=trusted),
        Entry(name=b"d/p", type=tarballs.FIFO, pax=trusted),
    )
    assert dict(seen[b"f"].xattrs) == {
        "security.capability": CAPABILITY,
        "user.binary": b"a\0b\n=\xff",
        "user.empty": b"",
        "user.percent encoded": b"hi",
    }
    assert seen[b"f"].mode == 0o4755
    assert dict(seen[b"d"].xattrs) == {"user.u": b"d"}
    for name in (b"d/s", b"d/c", b"d/p"):
        assert dict(seen[name].xattrs) == {"trusted.t": b"1"}, "user. attributes are for files and directories only"


def test_overlay_attributes_are_dropped(tmp_path: Path) -> None:
    """An archive could hide or redirect what lower layers have, or other files of the host."""
    pax = {
        b"SCHILY.xattr.trusted.overlay.opaque": b"y",
        b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
        b"SCHILY.xattr.user.overlay.opaque": b"y",
        b"LIBARCHIVE.xattr.trusted.overlay.metacopy": b"",
        b"SCHILY.xattr.security.selinux": b"label",
    }
    seen = unpack_entries(
        tmp_path, replace(directory(b"d"), pax=pax), Entry(name=b"f", pax=pax), replace(directory(b"."), pax=pax)
    )
    assert seen[b"d"].xattrs == seen[b"f"].xattrs == seen[b"."].xattrs == ()


def test_default_acl_does_not_change_modes(tmp_path: Path) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, 0xFFFFFFFF) for tag, permissions in ((1, 7), (4, 0), (0x20, 0))
    )
    seen = unpack_entries(
        tmp_path,
        replace(directory(b"d"), pax={b"SCHILY.xattr.system.posix_acl_default": acl}),
        Entry(name=b"d/f", mode=0o666),
        directory(b"d/e", 0o777),
        Entry(name=b"d/p", type=tarballs.FIFO, mode=0o666),
    )
    assert (seen[b"d/f"].mode, seen[b"d/e"].mode, seen[b"d/p"].mode) == (0o666, 0o777, 0o666)


# Order -----------------------------------------------------------------------------------------------------------


def test_the_last_entry_of_a_name_wins(tmp_path: Path) -> None:
    kinds = {
        "file": Entry(name=b"x", content=b"f"),
        "directory": directory(b"x"),
        "symlink": symlink(b"x", b"keep"),
        "fifo": Entry(name=b"x", type=tarballs.FIFO),
        "char": Entry(name=b"x", type=tarballs.CHAR, device=(1, 3)),
    }
    for first, one in kinds.items():
        for second, other in kinds.items():
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            inside = [Entry(name=b"x/below/it", content=b"i")] if first == "directory" else []
            seen = unpack_entries(folder, directory(b"keep"), Entry(name=b"keep/k"), one, *inside, other)
            assert seen[b"x"].kind == second
            assert seen[b"keep/k"].kind == "file"
            assert (b"x/below/it" in seen) == (first == second == "directory")


def test_replacing_one_name_of_a_hard_linked_file(tmp_path: Path) -> None:
    seen = unpack_entries(
        tmp_path, Entry(name=b"a", content=b"1"), hard_link(b"b", b"a"), Entry(name=b"a", content=b"2")
    )
    assert (seen[b"a"].content, seen[b"b"].content) == (b"2", b"1")


def test_hard_links(tmp_path: Path) -> None:
    seen = unpack_entries(
        tmp_path,
        symlink(b"s", b"nowhere"),
        directory(b"d"),
        symlink(b"through", b"d"),
        Entry(name=b"d/f", content=b"f"),
        hard_link(b"other/f2", b"./through/f"),
        hard_link(b"s2", b"s"),
        hard_link(b"/d/f", b"/other/f2"),  # to itself
        Entry(name=b"old", content=b"old"),
        hard_link(b"old", b"d/f"),
        replace(hard_link(b"sized", b"d/f"), size=4),  # some writers repeat the size, and there is no body
        Entry(name=b"end"),
    )
    assert seen[b"d/f"].links == (b"d/f", b"old", b"other/f2", b"sized")
    assert seen[b"s2"].links == (b"s", b"s2")
    assert b"end" in seen


def test_a_hard_link_does_not_change_its_target(tmp_path: Path) -> None:
    one = Entry(name=b"a", mode=0o600, uid=1, mtime=5)
    seen = unpack_entries(tmp_path, one, replace(hard_link(b"b", b"a"), mode=0o777, uid=9, mtime=6))
    assert (seen[b"a"].mode, seen[b"a"].owner, seen[b"a"].mtime) == (0o600, (1, 0), 5 * 10**9)


@pytest.mark.parametrize("target", [b"missing", b"no/parent", b"later", b"gone"])
def test_hard_link_to_nothing(tmp_path: Path, target: bytes) -> None:
    entries = [Entry(name=b".wh.gone"), hard_link(b"l", target), Entry(name=b"later")]
    unpack_entries(
        tmp_path, *entries, error=f"layer entry 'l': it is a hard link to '{target.decode()}', which the layer does not"
    )


def test_parents_through_links(tmp_path: Path) -> None:
    """Links of the layer are followed inside it, also before what they lead to exists, and to the root at most."""
    seen = unpack_entries(
        tmp_path,
        symlink(b"abs", b"/usr/abs"),
        symlink(b"up", b"../../../usr"),
        symlink(b"chain", b"up/./../up"),
        Entry(name=b"abs/1"),
        Entry(name=b"up/2"),
        Entry(name=b"chain/3"),
        directory(b"chain/d", mtime=4),
        Entry(name=b"chain/d/4"),
        directory(b"usr", 0o700),
        Entry(name=b"abs/.wh.5"),
    )
    assert {b"usr/abs/1", b"usr/2", b"usr/3", b"usr/d/4"} <= seen.keys()
    assert seen[b"usr/d"].mtime == 4 * 10**9
    assert seen[b"usr"].mode == 0o700
    assert seen[b"usr/abs/5"].whiteout


def test_a_link_that_changes(tmp_path: Path) -> None:
    """The cache of parents must notice."""
    seen = unpack_entries(
        tmp_path,
        symlink(b"s", b"one"),
        Entry(name=b"s/f", content=b"1"),
        symlink(b"s", b"two"),
        Entry(name=b"s/f", content=b"2"),
        directory(b"s"),
        Entry(name=b"s/f", content=b"3"),
    )
    assert [seen[n].content for n in (b"one/f", b"two/f", b"s/f")] == [b"1", b"2", b"3"]


def test_times_of_directories_that_were_replaced(tmp_path: Path) -> None:
    seen = unpack_entries(
        tmp_path,
        directory(b"d", mtime=1),
        directory(b"d/e", mtime=2),
        Entry(name=b"d", content=b"file now", mtime=3),
        directory(b"d", mtime=4),
        directory(b"d/e", mtime=5),
        Entry(name=b"d/e/f"),
        directory(b"gone", mtime=6),
        symlink(b"gone", b"d"),
    )
    assert (seen[b"d"].mtime, seen[b"d/e"].mtime) == (4 * 10**9, 5 * 10**9)


def test_what_no_entry_speaks_of_has_a_time_of_the_archive(tmp_path: Path) -> None:
    """Unpacking an archive again gives the same tree: also the directories that it leaves out, and whiteouts."""
    entries = [Entry(name=b"a/b/f", mtime=7), Entry(name=b"a/c/.wh.x", mtime=8), Entry(name=b"late/f", mtime=9)]
    entries.append(directory(b"late", mtime=10))
    seen = unpack_entries(tmp_path, *entries)
    times = {name: found.mtime // 10**9 for name, found in seen.items()}
    assert times == {b".": 7, b"a": 7, b"a/b": 7, b"a/b/f": 7, b"a/c": 8, b"a/c/x": 8, b"late": 10, b"late/f": 9}


@pytest.mark.parametrize("blob", [b"", archive()])
def test_an_empty_layer_has_no_time(tmp_path: Path, blob: bytes) -> None:
    accepted(unpack_bytes(blob, tmp_path / "layer"))
    assert survey(tmp_path / "layer")[b"."].mtime == 0
