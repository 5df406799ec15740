"""Trees whose content nobody vouches for: walked, compared and removed, however deep they are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crungo.image.trees import differences, dispose, entries, remove_tree, tree_size
from tests.support.smallpulls import noise


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


def test_holes(tree: Path, tmp_path: Path) -> None:
    """They are zeros, of which nothing is read: an archive of a few bytes can have a file of exabytes."""
    other = tmp_path / "other"
    other.mkdir()
    data = {0: b"begin", 1_000_000: b"middle", 131_071: b"\1\1", (1 << 40) - 3: b"end"}
    for path in (tree, other):
        with (path / "file").open("wb") as file:
            for at, piece in data.items():
                file.seek(at)
                file.write(piece)
            if path == other:
                file.seek(500_000)
                file.write(bytes(300_000))  # zeros that are there
        (path / "hole").touch()
        os.truncate(path / "hole", 1 << 43)
        (path / "empty").touch()
        for name in ("file", "hole", "empty", "."):
            os.utime(path / name, ns=(0, 0))
    before = time.monotonic()
    assert differences(str(tree), str(other)) == []
    with (other / "file").open("r+b") as file:
        file.seek(131_072)
        file.write(b"\2")
    os.utime(other / "file", ns=(0, 0))
    with (other / "hole").open("r+b") as file:
        file.seek(1 << 42)
        file.write(b"x")
    os.utime(other / "hole", ns=(0, 0))
    assert differences(str(tree), str(other)) == ["'/file': differs in content", "'/hole': differs in content"]
    assert time.monotonic() - before < 10
