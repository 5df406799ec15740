"""Extents against a set of positions, and a part's journal against a process that was killed."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.image.blobs import Blobs, hash_file
from crungo.image.digest import EMPTY_SHA256, digest_of
from crungo.image.extents import Extents
from crungo.image.layout import Layout

ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12)


@given(ranges, st.integers(0, 35))
def test_against_a_set(added: list[tuple[int, int]], size: int) -> None:
    extents = Extents(added)
    model = {position for start, end in added for position in range(start, end)}
    kept = list(extents)
    assert {position for start, end in kept for position in range(start, end)} == model
    assert all(start < end for start, end in kept)
    assert all(before[1] < after[0] for before, after in pairwise(kept))
    assert extents.total() == len(model)
    assert len(extents) == len(kept)
    assert {p for start, end in extents.gaps(size) for p in range(start, end)} == set(range(size)) - model
    prefix = extents.prefix()
    assert set(range(prefix)) <= model
    assert prefix not in model


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    layout = Layout(str(tmp_path))
    layout.create()
    return Blobs(layout)


BODY = bytes(range(256)) * 40
DIGEST = digest_of(BODY)


@pytest.mark.anyio
async def test_part_is_continued(blobs: Blobs) -> None:
    async with blobs.part(DIGEST, len(BODY)) as part:
        assert part is not None
        one, two = part.segment(0), part.segment(5000)
        await one.write([BODY[:100], BODY[100:150]], 150)
        await two.write([BODY[5000:5001]], 1)
        await one.write([BODY[150:200]], 50)
        assert part.extents.prefix() == 200
    async with blobs.part(DIGEST, len(BODY)) as part:
        assert part is not None
        assert list(part.extents) == [(0, 200), (5000, 5001)]
        for start, end in part.extents.gaps(len(BODY)):
            await part.segment(start).write([BODY[start:end]], end - start)
        part.commit()
    assert blobs.read(DIGEST, limit=1 << 20) == BODY
    async with blobs.part(DIGEST, len(BODY)) as part:
        assert part is None
    assert blobs.names() == [DIGEST]


@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=30)), max_size=6), st.integers(0, 6))
def test_the_digest_of_a_part_is_its_files(written: list[tuple[int, bytes]], before: int) -> None:
    """However it was written: in order, with gaps, twice, and partly before anybody wanted a digest."""

    async def run(blobs: Blobs) -> None:
        async with blobs.part(DIGEST, 60) as part:
            assert part is not None
            end = 0
            for number, (start, data) in enumerate(written):
                if number == before:
                    part.sum_up(DIGEST)
                at = end if start % 2 else start
                await part.segment(at).write([data[:3], data[3:]], len(data))
                end = at + len(data)
            assert part.found(DIGEST) == hash_file(part.fd, DIGEST)
            part.restart()
            assert part.found(DIGEST) == (EMPTY_SHA256, 0)

    with TemporaryDirectory() as folder:
        layout = Layout(folder)
        layout.create()
        anyio.run(run, Blobs(layout))


@pytest.mark.anyio
async def test_empty_part_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    async with blobs.part(DIGEST, len(BODY)) as part:
        assert part is not None
        await part.segment(0).write([BODY], len(BODY))
        part.restart()
    assert os.listdir(tmp_path / "ingest") == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "journal",
    [
        b"x",
        bytes(16),
        b"\xff" * 32,
        (5).to_bytes(8, "little") + (4).to_bytes(8, "little"),
        bytes(8) + b"\x11" + bytes(7),
    ],
)
async def test_damaged_journal_claims_nothing(journal: bytes, blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "ingest" / f"sha256-{DIGEST[7:]}.part"
    path.write_bytes(BODY[:16])
    path.with_name(path.name + ".extents").write_bytes(journal)
    async with blobs.part(DIGEST, len(BODY)) as part:
        assert part is not None
        assert len(part.extents) == 0
