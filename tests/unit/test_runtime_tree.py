"""Trees of somebody else: nothing leaves them, nothing blocks, archives go in and out whole."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.runtime.archive import LARGEST_HEADER, pack, unpack
from crungo.runtime.tree import NewFile, Tree
from tests.support.tarballs import END, FIFO, Entry, archive, directory, hard_link, symlink

ME = (os.geteuid(), os.getegid())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with something outside that nobody may reach."""
    (tmp_path / "outside").write_text("outside")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "passwd").write_text("inside")
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    tree = Tree.at(str(root))
    yield tree
    tree.close()


def read(tree: Tree, path: str) -> bytes:
    with open(tree.open_file(path), "rb") as file:
        return file.read()


def write(tree: Tree, path: str, data: bytes = b"new", mode: int | None = None) -> None:
    new = NewFile(tree, path)
    try:
        new.write(data)
        new.finish(mode, ME)
    finally:
        new.close()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "etc/passwd", "../../../etc/passwd", "/etc/../etc/./passwd", "//etc//passwd", "link", "deep"],
)
def test_every_path_is_below_the_root(tree: Tree, root: Path, path: str) -> None:
    (root / "link").symlink_to("/etc/passwd")
    (root / "deep").symlink_to("etc/../../../../../etc/passwd")
    assert read(tree, path) == b"inside"


def test_links_out_of_the_root_lead_nowhere(tree: Tree, root: Path) -> None:
    (root / "out").symlink_to("../outside")
    (root / "up").symlink_to("..")
    for path in ("out", "up/outside", "../outside"):
        with pytest.raises(FileNotFoundError):
            tree.open_file(path)


def test_magic_links_are_refused(root: Path) -> None:
    host = Tree.at("/")
    try:
        with pytest.raises(OSError, match="symbolic links"):
            host.open_file(f"/proc/self/cwd{root}/etc/passwd")
    finally:
        host.close()


def test_what_is_no_file_is_never_opened(tree: Tree, root: Path) -> None:
    os.mkfifo(root / "fifo")  # opening it would block for ever
    with pytest.raises(OSError, match="not a regular file"):
        tree.open_file("fifo")
    with pytest.raises(IsADirectoryError):
        tree.open_file("etc")


def test_a_file_replaces_what_was_there_and_keeps_its_attributes(tree: Tree, root: Path) -> None:
    (root / "etc" / "passwd").chmod(0o4711)
    before = (root / "etc" / "passwd").stat().st_ino
    write(tree, "/etc/passwd")
    now = (root / "etc" / "passwd").stat()
    assert (root / "etc" / "passwd").read_bytes() == b"new"
    assert stat.S_IMODE(now.st_mode) == 0o4711
    assert now.st_ino != before


def test_a_file_replaces_a_link_and_does_not_follow_it(tree: Tree, root: Path) -> None:
    (root / "planted").symlink_to("/etc/passwd")
    write(tree, "planted")
    assert (root / "etc" / "passwd").read_text() == "inside"
    assert not (root / "planted").is_symlink()
    os.mkfifo(root / "fifo")
    write(tree, "fifo")
    assert (root / "fifo").read_bytes() == b"new"


def test_directories_above_are_made(tree: Tree, root: Path) -> None:
    umask = os.umask(0o077)
    try:
        write(tree, "a/b/c")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((root / "a" / "b").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "a" / "b" / "c").stat().st_mode) == 0o644
    (root / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        write(tree, "dangling/file")


@pytest.mark.parametrize("path", ["/", "", ".", "..", "a/..", "nul\0"])
def test_a_file_needs_a_name(tree: Tree, path: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        NewFile(tree, path)


def test_an_unfinished_file_leaves_nothing(tree: Tree, root: Path) -> None:
    new = NewFile(tree, "file")
    new.write(b"half")
    new.close()
    assert os.listdir(root) == ["etc"]


def test_a_directory_is_not_replaced_by_a_file(tree: Tree, root: Path) -> None:
    with pytest.raises(OSError, match="director"):
        write(tree, "etc")
    assert sorted(os.listdir(root)) == ["etc"]


def packed(tree: Tree, path: str, prefix: str | None = None) -> bytes:
    out = io.BytesIO()
    pack(tree, path, out, prefix=prefix)
    return out.getvalue()


def unpacked(tree: Tree, data: bytes, path: str = "/") -> None:
    unpack(tree, path, io.BytesIO(data), owner=ME)


def test_an_archive_goes_out_and_in_again(tree: Tree, root: Path) -> None:
    source = root / "src"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(b"x" * 3_000_000)
    (source / "sub" / "file").chmod(0o640)
    os.link(source / "sub" / "file", source / "linked")
    (source / "relative").symlink_to("sub/file")
    os.mkfifo(source / "fifo")
    name = os.fsdecode(b"not-\xff-utf8")
    (source / name).write_text("odd")
    data = packed(tree, "/src")
    with tarfile.open(fileobj=io.BytesIO(data)) as listed:
        assert {member.name for member in listed} >= {"src", "src/sub/file", f"src/{name}"}
    unpacked(tree, data, "/copy/of")
    copy = root / "copy" / "of" / "src"
    assert sorted(os.listdir(copy)) == sorted(os.listdir(source))
    assert (copy / "sub" / "file").read_bytes() == b"x" * 3_000_000
    assert stat.S_IMODE((copy / "sub" / "file").stat().st_mode) == 0o640
    assert (copy / "linked").stat().st_ino == (copy / "sub" / "file").stat().st_ino
    assert os.readlink(copy / "relative") == "sub/file"
    assert stat.S_ISFIFO((copy / "fifo").stat().st_mode)
    assert (copy / "sub" / "file").stat().st_mtime == int((source / "sub" / "file").stat().st_mtime)


def test_a_single_file_and_the_root(tree: Tree) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(tree, "/etc/passwd"))) as listed:
        assert listed.getnames() == ["passwd"]
    with tarfile.open(fileobj=io.BytesIO(packed(tree, "/", "."))) as listed:
        assert listed.getnames() == [".", "./etc", "./etc/passwd"]


def test_a_file_that_shrinks_does_not_break_the_archive(
    tree: Tree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").write_bytes(b"1234")
    real = os.fstat

    def larger(fd: int) -> os.stat_result:
        status = real(fd)
        if status.st_size != 4:
            return status
        values = list(status)
        values[6] = 4_000_000
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", larger)
    with tarfile.open(fileobj=io.BytesIO(packed(tree, "file"))) as listed:
        content = listed.extractfile("file")
        assert content is not None
        assert content.read() == b"1234".ljust(4_000_000, b"\0")


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(name=b"../outside", content=b"x")],
        [Entry(name=b"a/../../outside", content=b"x")],
        [hard_link(b"x", b"../outside")],
        [Entry(name=b"null", type=b"3", device=(1, 3))],
        [Entry(name=b"big", pax=[(b"comment", b"x" * (LARGEST_HEADER + 1))])],
        [Entry(name=b"file", content=b"x"), Entry(name=b"file/below", content=b"x")],
    ],
    ids=["dots", "hidden dots", "hard link", "device", "header", "below a file"],
)
def test_a_hostile_archive_is_refused(tree: Tree, root: Path, entries: list[Entry]) -> None:
    with pytest.raises((OSError, tarfile.TarError)):
        unpacked(tree, archive(*entries), "/etc")
    assert (root.parent / "outside").read_text() == "outside"
    assert not [name for name in os.listdir(root / "etc") if name.startswith(".crungo")]


@pytest.mark.parametrize(
    "entries",
    [
        [symlink(b"up", b"../.."), Entry(name=b"up/outside", content=b"x")],
        [symlink(b"abs", b"/"), Entry(name=b"abs/../outside2", content=b"x")],
        [Entry(name=b"/outside", content=b"x")],
        [symlink(b"out", b"../../outside"), Entry(name=b"out", content=b"x")],
        [symlink(b"out", b"../../outside"), hard_link(b"copy", b"out"), Entry(name=b"copy", content=b"x")],
    ],
    ids=["parent link", "absolute link", "absolute", "over a link", "link to a link"],
)
def test_nothing_is_written_outside(tree: Tree, root: Path, entries: list[Entry]) -> None:
    try:
        unpacked(tree, archive(*entries), "/etc")
    except (OSError, tarfile.TarError):
        pass
    assert (root.parent / "outside").read_text() == "outside"
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]


def test_directories_are_merged_and_links_to_them_left_alone(tree: Tree, root: Path) -> None:
    (root / "lib").symlink_to("etc")
    unpacked(tree, archive(directory(b"lib", 0o700), Entry(name=b"lib/new", content=b"x"), directory(b"etc", 0o711)))
    assert (root / "lib").is_symlink()
    assert (root / "etc" / "new").read_bytes() == b"x"
    assert (root / "etc" / "passwd").read_text() == "inside"
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o711


def test_a_fifo_and_modes(tree: Tree, root: Path) -> None:
    unpacked(tree, archive(Entry(name=b"pipe", type=FIFO), Entry(name=b"suid", mode=0o4755, content=b"x")))
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert stat.S_IMODE((root / "suid").stat().st_mode) == 0o4755


@given(data=st.binary(max_size=2000) | st.binary(max_size=1500).map(lambda noise: noise + END))
def test_noise_is_an_error_or_nothing(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("noise")
    tree = Tree.at(str(folder))
    try:
        unpacked(tree, data)
    except (OSError, tarfile.TarError, EOFError, ValueError):
        pass
    finally:
        tree.close()
    assert not os.listdir(folder)
