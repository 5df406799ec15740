"""Files of an image's root that are read before anything of it runs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crungo.errors import ContainerError
from tests.support.native import read_file

FILE_LIMIT = 4 << 20

IN_OPEN = 0x20


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "outside").write_text("outside")
    (tmp_path / "root").mkdir()
    root = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield root
    os.close(root)


def test_only_regular_files_of_the_root_are_read(root: int, tmp_path: Path) -> None:
    (tmp_path / "root" / "file").write_text("inside")
    (tmp_path / "root" / "link").symlink_to("/file")
    (tmp_path / "root" / "out").symlink_to("../outside")
    (tmp_path / "root" / "directory").mkdir()
    read = {name: read_file(root, name) for name in ("file", "link", "out", "directory", "missing")}
    assert read == {"file": b"inside", "link": b"inside", "out": b"", "directory": b"", "missing": b""}


def test_a_large_file_is_refused(root: int, tmp_path: Path) -> None:
    with (tmp_path / "root" / "large").open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(ContainerError, match="/large of the image is larger than 4 MiB"):
        read_file(root, "large")


def test_what_is_no_file_is_not_even_opened(root: int, tmp_path: Path) -> None:
    # A FIFO stands for a device here, which only root can make: to open one can be all it takes to do harm.
    fifo = tmp_path / "root" / "fifo"
    os.mkfifo(fifo)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(fifo), IN_OPEN) >= 0
        assert read_file(root, "fifo") == b""
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)
