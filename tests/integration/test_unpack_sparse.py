"""Files with holes, and archives with next to nothing in them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tests.support import tarballs
from tests.support.tarballs import Entry, archive
from tests.support.unpacking import accepted, survey, unpack_bytes, unpack_entries

BLOCKS = [(0, b"start" * 100), (1 << 20, b"middle"), (5 << 20, b"end")]


def _sparse(kind: str, name: bytes, size: int) -> Entry:
    if kind == "gnu":
        return tarballs.gnu_sparse(name, size, BLOCKS)
    return tarballs.pax_sparse(name, size, BLOCKS, kind)


@pytest.mark.parametrize("kind", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("size", [(5 << 20) + 3, 50 << 20])
def test_sparse(tmp_path: Path, kind: str, size: int) -> None:
    expected = bytearray(size)
    for at, data in BLOCKS:
        expected[at : at + len(data)] = data
    seen = unpack_entries(tmp_path, _sparse(kind, b"dir/s", size), Entry(name=b"after", content=b"ok"))
    assert seen[b"dir/s"].content == bytes(expected)
    assert os.stat(tmp_path / "layer/dir/s").st_blocks * 512 < 1 << 20
    assert seen[b"after"].content == b"ok"


def test_sparse_and_enormous(tmp_path: Path) -> None:
    """The limit is on the stream: a hole takes no room."""
    target = tmp_path / "layer"
    blob = archive(tarballs.pax_sparse(b"s", 1 << 40, [(0, b"x")], "1.0"))
    accepted(unpack_bytes(blob, target, limit=1 << 20))
    assert (target / "s").stat().st_size == 1 << 40


@pytest.mark.parametrize("blob", [b"", gzip.compress(b""), bytes(1024), bytes(512)], ids=["none", "gz", "end", "half"])
def test_empty_layers(tmp_path: Path, blob: bytes) -> None:
    outcome = unpack_bytes(blob, tmp_path / "layer")
    accepted(outcome)
    assert outcome.message["entries"] == 0


def test_archive_without_its_end(tmp_path: Path) -> None:
    """Some writers leave it out, and others read it."""
    accepted(unpack_bytes(Entry(name=b"f", content=b"x").raw(), tmp_path / "layer"))


def test_global_headers_are_ignored(tmp_path: Path) -> None:
    blob = tarballs.pax_header([(b"comment", b"from git"), (b"path", b"evil")], b"g") + archive(Entry(name=b"f"))
    accepted(unpack_bytes(blob, tmp_path / "layer"))
    assert set(survey(tmp_path / "layer")) == {b".", b"f"}
