"""Archives that want out, or want to hurt: each gets one clear line or the right result; outside nothing changes."""

from __future__ import annotations

import errno
import gzip
import os
import random
import signal
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import tarballs, unpacking
from tests.support.tarballs import Entry, archive, directory, hard_link, symlink
from tests.support.unpacking import accepted, refused, survey, unpack_bytes


@pytest.fixture(params=["one thread", "threads"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "by_threads", request.param == "threads")


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Path]:
    """An empty directory for a layer, deep in one where everything else must stay as it is."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_bytes(b"alive")
    os.utime(canary / "file", ns=(1, 1))
    os.utime(canary, ns=(1, 1))
    before = survey(canary)
    inner = tmp_path / "deep" / "layer"
    inner.mkdir(parents=True)
    yield inner
    assert survey(canary) == before, "AN ENTRY HAS REACHED OUTSIDE"
    assert sorted(os.listdir(tmp_path)) == ["canary", "deep"], "AN ENTRY HAS REACHED OUTSIDE"
    assert set(os.listdir(tmp_path / "deep")) <= {"layer", "layer.blob"}, "AN ENTRY HAS REACHED OUTSIDE"
    # Deeper than Python's own functions, pytest's among them, can follow.
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


# Ways out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"../canary/file", b"../../canary/file", b"a/../../x", b"/..", b"..", b"./../x", b"a/../.."]
)
@pytest.mark.parametrize("kind", [tarballs.FILE, tarballs.DIRECTORY, tarballs.SYMLINK, tarballs.FIFO])
def test_names_that_climb(layer: Path, name: bytes, kind: bytes) -> None:
    refused(unpack_bytes(archive(Entry(name=name, type=kind, link=b"x")), layer), "its name climbs out of the layer")


@pytest.mark.parametrize("target", [b"../canary/file", b"../../../../etc/passwd", b"a/../.."])
def test_hard_links_that_climb(layer: Path, target: bytes) -> None:
    refused(unpack_bytes(archive(hard_link(b"h", target)), layer), "its hard link's target climbs out of the layer")


def test_absolute_names_stay_inside(layer: Path) -> None:
    outside = os.fsencode(layer.parent.parent / "canary" / "file")
    accepted(unpack_bytes(archive(Entry(name=outside, content=b"dead")), layer))
    assert survey(layer)[outside[1:]].content == b"dead"
    refused(unpack_bytes(archive(hard_link(b"h", outside + b"2")), layer), "which the layer does not have before it")


def _links_out(layer: Path) -> list[bytes]:
    outside = layer.parent.parent / "canary"
    return [
        os.fsencode(outside),
        b"../../canary",
        b"../../../../../../../.." + os.fsencode(outside),
        b"/proc/self/root",
        b"/",
    ]


def test_parents_that_are_links_to_outside(layer: Path) -> None:
    """They are followed as the container would follow them: with the layer as the root."""
    for at, target in enumerate(_links_out(layer)):
        name = b"s%d" % at
        entries = [
            symlink(name, target),
            Entry(name=name + b"/file", content=b"dead"),
            directory(name + b"/new"),
            Entry(name=name + b"/new/f"),
            Entry(name=name + b"/.wh.file2"),
            Entry(name=name + b"/.wh..wh..opq"),
            symlink(name + b"/new/s", b"/"),
            Entry(name=name + b"/new/s/through", content=b"x"),
        ]
        accepted(unpack_bytes(archive(*entries), layer))


def test_the_file_itself_is_a_link_to_outside(layer: Path) -> None:
    """Nothing is written, changed or linked through it."""
    for at, target in enumerate(_links_out(layer)):
        name = b"f%d" % at
        file = os.path.join(target, b"file")
        for second in (
            Entry(name=name, content=b"dead", mode=0o777, uid=9),
            directory(name, 0o777, uid=9),
            Entry(name=name, type=tarballs.FIFO, mode=0o777, uid=9),
            symlink(name, b"other"),
        ):
            accepted(unpack_bytes(archive(symlink(name, file), second), layer))
        accepted(unpack_bytes(archive(symlink(name, file), hard_link(b"h" + name, name)), layer))
        assert survey(layer)[b"h" + name].kind == "symlink"


def test_hard_link_through_a_link_to_outside(layer: Path) -> None:
    for target in _links_out(layer):
        outcome = unpack_bytes(
            archive(symlink(b"s", target), hard_link(b"h", b"s/file"), hard_link(b"h", b"s/f")), layer
        )
        refused(outcome, "which the layer does not have before it")


def test_whiteouts_of_what_is_not_below(layer: Path) -> None:
    for name in (b".wh.", b".wh..", b".wh...", b"d/.wh...", b"d/.wh./", b".wh./x"):
        refused(unpack_bytes(archive(Entry(name=name)), layer), "whiteout")
    refused(unpack_bytes(archive(Entry(name=b".wh.a/b")), layer), "it is inside a whiteout")
    refused(unpack_bytes(archive(symlink(b"s", b".."), Entry(name=b"s/../../.wh.canary")), layer), "climbs")


def test_the_root_cannot_be_something_else(layer: Path) -> None:
    for entry in (Entry(name=b"./"), symlink(b".", b"x"), Entry(name=b"/", type=tarballs.FIFO), hard_link(b".", b"a")):
        outcome = unpack_bytes(archive(Entry(name=b"a"), entry), layer)
        if entry.type != tarballs.FILE:
            refused(outcome, "names the layer's root")
    refused(unpack_bytes(archive(hard_link(b"h", b"/")), layer), "hard link")


def test_link_loops(layer: Path) -> None:
    refused(
        unpack_bytes(archive(symlink(b"a", b"b"), symlink(b"b", b"a"), Entry(name=b"a/f")), layer), "Too many levels"
    )
    chain = [symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(60)]
    refused(unpack_bytes(archive(*chain, Entry(name=b"l0/f")), layer), "Too many levels")


def test_links_that_grow(layer: Path) -> None:
    """Each link doubles the path that remains: billions of steps, and no end, if nobody counted."""
    grow = [symlink(b"l%d" % n, b"l%d/../l%d/.." % (n + 1, n + 1)) for n in range(30)]
    refused(unpack_bytes(archive(*grow, directory(b"l30"), Entry(name=b"l0/f")), layer), "parent")


def _up_and_down(links: int, entries: int) -> bytes:
    """Entries below links that lead up and down, at a depth where nobody should begin at the root each time."""
    deep = b"/".join([b"d"] * 1000)
    there = [directory(deep), symlink(b"go", deep)]
    there += [symlink(b"go/l%d" % n, b"../d/" * 390 + b"l%d" % (n + 1)) for n in range(links)]
    there.append(directory(b"go/l%d" % links))
    # A link that is replaced makes the unpacker look for every parent again.
    again = [symlink(b"s", b"x"), symlink(b"s", b"y"), Entry(name=b"go/l0/f")]
    return archive(*there, *again * entries)


def test_links_up_and_down(layer: Path) -> None:
    outcome = unpack_bytes(_up_and_down(3, 100), layer)
    accepted(outcome)
    assert outcome.cpu < 4


def test_very_many_steps(layer: Path) -> None:
    """Forty links of a page each would be some thirty thousand for each entry of a kilobyte."""
    refused(unpack_bytes(_up_and_down(37, 1), layer), "parent directory: Too many levels of symbolic links")


# Sizes -----------------------------------------------------------------------------------------------------------


def test_long_names(layer: Path) -> None:
    refused(unpack_bytes(archive(Entry(name=b"x" * 256)), layer), "File name too long")
    refused(unpack_bytes(archive(Entry(name=b"x/" * 3000 + b"f")), layer), "its name is longer than 4095 bytes")
    refused(unpack_bytes(archive(Entry(name=b"x" * 256 + b"/f")), layer), "File name too long")
    refused(unpack_bytes(archive(symlink(b"s", b"x" * 5000)), layer), "File name too long")
    accepted(unpack_bytes(archive(Entry(name=b"x/" * 2000 + b"f")), layer))


def test_deeper_than_a_path_can_say(layer: Path) -> None:
    """Through links a tree gets deeper than any name; it cannot, and can be removed."""
    deep = b"/".join([b"d" * 200] * 18)
    entries = [directory(deep), symlink(b"s", deep), directory(b"s/" + deep)]
    refused(unpack_bytes(archive(*entries), layer), "parent directory: File name too long")


def test_removing_a_deep_directory(layer: Path) -> None:
    deep = b"/".join([b"d"] * 1900)
    accepted(unpack_bytes(archive(directory(deep), Entry(name=deep + b"/f"), Entry(name=b"d", content=b"file")), layer))
    assert (layer / "d").read_bytes() == b"file"


def test_special_headers_that_are_too_large(layer: Path) -> None:
    header = replace(Entry(name=b"x"), type=b"x", size=1 << 40).header()
    refused(unpack_bytes(header + archive(Entry(name=b"f")), layer), "Special header too large")
    refused(unpack_bytes(archive(Entry(name=b"f", pax={b"comment": b"x" * 1_100_000})), layer))


def test_headers_without_end(layer: Path) -> None:
    refused(unpack_bytes(tarballs.pax_header([(b"a", b"b")]) * 100_000, layer))
    refused(unpack_bytes(Entry(name=b"x", type=b"L", content=b"name\0").raw() * 100_000, layer))


@pytest.mark.parametrize("size", [1 << 33, (1 << 63) - 1, -1, -(1 << 63)])
def test_lying_sizes(layer: Path, size: int) -> None:
    outcome = unpack_bytes(archive(Entry(name=b"f", content=b"x" * 1000, size=size, magic=b"ustar  \0")), layer)
    refused(outcome)
    refused(unpack_bytes(archive(Entry(name=b"f", content=b"x" * 1000, pax={b"size": b"%d" % size})), layer))


def test_sparse_maps_that_lie(layer: Path) -> None:
    for blocks in ([(1 << 62, b"x")], [((1 << 63) - 1, b"x")], [(0, b"xxxx"), (2, b"y")], [(10, b"x"), (5, b"y")]):
        for version in ("0.0", "0.1", "1.0"):
            outcome = unpack_bytes(archive(tarballs.pax_sparse(b"s", 4, blocks, version)), layer)
            assert outcome.exit == 0
        outcome = unpack_bytes(archive(tarballs.gnu_sparse(b"s", 4, blocks)), layer)
        assert outcome.exit == 0
    # A file of 2^63-1 bytes is refused by the file system; tmpfs can hold it, as a hole.
    outcome = unpack_bytes(archive(tarballs.pax_sparse(b"s", (1 << 63) - 1, [(0, b"x")], "1.0")), layer)
    assert outcome.exit == 0


def _many_sparse_blocks(count: int) -> bytes:
    table = b"9999999\n" + b"0\n0\n" * count
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5")]
    return archive(Entry(name=b"s", pax=records, content=table))


def test_many_sparse_blocks(layer: Path) -> None:
    """The map is the reader's memory."""
    outcome = unpack_bytes(_many_sparse_blocks(2_000_000), layer)
    refused(outcome)
    assert outcome.peak < 150_000


def test_too_many_sparse_blocks(layer: Path) -> None:
    """Memory has a limit, at which libarchive ends the process, and in doing so makes a call that it may not."""
    outcome = unpack_bytes(_many_sparse_blocks(9_999_999), layer)
    assert outcome.exit == -signal.SIGSYS
    assert outcome.peak < 150_000


def test_a_million_entries(layer: Path) -> None:
    """Bounded memory: directories are remembered until the end, for their times."""
    one = directory(b"d/0000000", mtime=5).raw()

    compressor = zlib.compressobj(1, wbits=31)
    blob = b""
    for n in range(100_000):
        name = b"d/%07d" % n
        block = bytearray(one)
        block[: len(name)] = name
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        blob += compressor.compress(block)
    blob += compressor.flush()
    shallow = unpack_bytes(archive(Entry(name=b"f")), layer)
    outcome = unpack_bytes(blob, layer)
    accepted(outcome)
    assert outcome.message["entries"] == 100_000
    assert outcome.peak - shallow.peak < 60_000
    assert os.stat(layer / "d/0099999").st_mtime == 5


def test_directories_with_long_different_names(layer: Path) -> None:
    """Names that share nothing: what is kept of them has a limit. (Made of links, so that the files stay few.)"""
    entries = [directory(b"/".join([b"%03d" % n] + [b"y" * 200] * 19)) for n in range(400)]
    assert sum(len(e.name) for e in entries) > 1 << 20
    accepted(unpack_bytes(archive(*entries), layer))


def test_limit(layer: Path) -> None:
    blob = gzip.compress(archive(Entry(name=b"big", content=b"\0" * 3_000_000)))
    refused(unpack_bytes(blob, layer, limit=1_000_000), "more than the limit of 1000000 bytes")
    accepted(unpack_bytes(blob, layer, limit=3_100_000))


# Damage ----------------------------------------------------------------------------------------------------------


def test_truncated_everywhere(layer: Path) -> None:
    whole = archive(
        directory(b"d"),
        Entry(name=b"d/" + b"long" * 40, content=b"x" * 700),
        tarballs.pax_sparse(b"s", 9, [(3, b"x")], "1.0"),
    )
    for length in [*range(1, len(whole) - 1024, 97)]:
        outcome = unpack_bytes(whole[:length], layer)
        assert outcome.exit == 0
        if length % 512:
            refused(outcome)


def test_not_an_archive(layer: Path) -> None:
    for blob in (b"x", b"<html>not found</html>" * 100, os.urandom(5000), b"\0" * 511 + b"\1" + b"\0" * 512):
        refused(unpack_bytes(blob, layer))


def test_damage_names_the_entry(layer: Path) -> None:
    good = Entry(name=b"usr/bin/tool", content=b"x" * 5000).raw()
    refused(unpack_bytes(good[:3000], layer), "layer entry 'usr/bin/tool': ")
    broken = bytearray(archive(Entry(name=b"first"), Entry(name=b"second")))
    broken[600] ^= 1
    refused(unpack_bytes(bytes(broken), layer), "layer: Damaged tar archive")


def test_malformed_pax_headers(layer: Path) -> None:
    for body in (b"no length\n", b"5 a=b\n", b"99 a=b\n", b"6 a=b\n7 c", b"0 a=b\n", b"6 =bb\n", b"-6 a=b\n"):
        header = Entry(name=b"x", type=b"x", content=body).raw()
        refused(unpack_bytes(header + archive(Entry(name=b"f")), layer))


def test_names_do_not_reach_the_terminal(layer: Path) -> None:
    name = b"\x1b[31mred\x07\r\n\xe2\x80\xae\xff/../../x"
    outcome = unpack_bytes(archive(Entry(name=name)), layer)
    refused(outcome, r"'\x1b[31mred\x07\r\n\u202e\xff/../../x'")
    assert outcome.message["errno"] == 0


def test_devices_out_of_range(layer: Path) -> None:
    for device in ((4096, 0), (0, 1 << 20), (1 << 31, 1)):
        refused(unpack_bytes(archive(Entry(name=b"c", type=tarballs.CHAR, device=device)), layer), "out of range")


def test_unknown_kinds_and_no_name(layer: Path) -> None:
    refused(unpack_bytes(archive(Entry(name=b"")), layer), "no name")
    refused(unpack_bytes(archive(symlink(b"s", b"")), layer), "symbolic link to nowhere")
    refused(unpack_bytes(archive(hard_link(b"s", b"")), layer), "unknown kind")
    refused(unpack_bytes(archive(Entry(name=b"m", type=b"M", content=b"x")), layer), "unknown kind")


def test_more_than_the_file_system_takes(layer: Path) -> None:
    """It is the archive's fault, not the store's: no download of it is kept to go on with."""
    attribute = {b"SCHILY.xattr.user.a": bytes(65537)}
    outcome = unpack_bytes(archive(Entry(name=b"f", pax=attribute)), layer)
    refused(outcome, "Argument list too long")
    assert outcome.message["errno"] == 0
    links = (hard_link(b"%d" % n, b"f") for n in range(65_001))
    outcome = unpack_bytes(archive(Entry(name=b"f"), *links), layer)
    if outcome.message["event"] == "error":  # ext4 takes 65000
        refused(outcome, "Too many links")
        assert outcome.message["errno"] == 0


def test_parent_that_is_a_file(layer: Path) -> None:
    refused(unpack_bytes(archive(Entry(name=b"f"), Entry(name=b"f/g")), layer), "its parent is not a directory")


def test_hard_link_into_what_it_replaces(layer: Path) -> None:
    refused(unpack_bytes(archive(Entry(name=b"d/f"), hard_link(b"d", b"d/f")), layer), "which it replaces")


def test_random_damage(layer: Path) -> None:
    """A thousand archives with a few bytes changed: always an answer, never a crash."""
    seeds = random.Random(7)
    whole = archive(
        directory(b"./"),
        Entry(name=b"a/" + b"x" * 120, content=b"text" * 300, pax={b"SCHILY.xattr.user.u": b"v", b"mtime": b"1.5"}),
        symlink(b"s", b"a"),
        hard_link(b"s/h", b"a/" + b"x" * 120),
        Entry(name=b"s/.wh.w"),
        tarballs.gnu_sparse(b"sparse", 9000, [(0, b"x" * 600), (8000, b"y")]),
        Entry(name=b"n" * 150, magic=b"ustar  \0", content=b"z"),
    )
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(seeds.randint(1, 4)):
            at = seeds.randrange(len(whole))
            damaged[at] = seeds.choice([0, 0xFF, 0x80, ord("/"), ord("."), ord("9"), seeds.randrange(256)])
        header = seeds.randrange(len(whole) // 512) * 512
        if sum(damaged[header : header + 512]) and seeds.random() < 0.7:  # so that it gets past the checksum
            damaged[header + 148 : header + 156] = b" " * 8
            damaged[header + 148 : header + 156] = b"%06o\0 " % sum(damaged[header : header + 512])
        outcome = unpack_bytes(bytes(damaged), layer)
        assert outcome.exit == 0
        assert outcome.message["event"] in ("unpacked", "error")
        subprocess.run(["find", layer, "-mindepth", "1", "-delete"], check=True)


# The system ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(layer: Path) -> Iterator[Path]:
    """The layer's directory on a file system of 2 MiB and 40 files."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=40,mode=0755", "none", layer], check=True)
    yield layer
    subprocess.run(["umount", layer], check=True)


def test_no_space(small: Path) -> None:
    outcome = unpack_bytes(archive(Entry(name=b"big", content=b"x" * 4_000_000)), small)
    refused(outcome, "layer entry 'big': its content: No space left on device")
    assert outcome.message["errno"] == errno.ENOSPC


def test_no_inodes(small: Path) -> None:
    outcome = unpack_bytes(archive(*(Entry(name=b"f%d" % n) for n in range(100))), small)
    refused(outcome, "No space left on device")
    assert outcome.message["errno"] == errno.ENOSPC


def test_devices_cannot_be_opened_by_who_makes_them(layer: Path) -> None:
    """The unpacker's root is mounted nodev, for itself alone."""
    accepted(unpack_bytes(archive(Entry(name=b"null", type=tarballs.CHAR, device=(1, 3), mode=0o666)), layer))
    assert (layer / "null").read_bytes() == b""
    mounts = Path("/proc/self/mountinfo").read_text()
    assert os.fspath(layer) not in mounts
