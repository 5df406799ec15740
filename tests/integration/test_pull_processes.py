"""Pulls by several processes, and by processes that are killed: one store, nothing fetched twice, nothing half-made."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from crungo.image.check import check
from crungo.image.store import Store
from crungo.paths import Roots
from tests.support.faultproxy import Fault, FaultProxy
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image, push
from tests.support.pulling import Pulls, Starter, missing, spawner, unverified
from tests.support.registry import Registry

pytestmark = pytest.mark.anyio

KILLS = 100


@pytest.fixture(params=["asyncio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What is killed runs on asyncio, and is the same on trio."""
    return str(request.param)


@pytest.fixture(scope="module")
def source(registry: Registry) -> Source:
    dice = random.Random(5)
    image = make_image(
        [
            Layer().directory("d").file("d/0", dice.randbytes(300_000)),
            *(Layer().file(f"d/{n}", dice.randbytes(120_000)).whiteout(f"d/{n - 1}") for n in (1, 2)),
            Layer().file("small", "!"),
        ]
    )
    push(image, registry.address, "killed")
    return image


@pytest.fixture(scope="module")
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    """Slow enough that a kill finds every layer in its midst: about 0.2 s for the largest."""
    with FaultProxy(registry.address) as running:
        running.faults = lambda _: Fault(pause=0.01)
        yield running


@pytest.fixture(scope="module")
def starters() -> Iterator[list[Starter]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Starter()) for _ in range(5)]


@pytest.fixture
async def pulls(tmp_path: Path) -> AsyncIterator[Pulls]:
    async with spawner(Roots(root=f"{tmp_path}/spawner", run=f"{tmp_path}/run")) as process:
        yield Pulls(process)


def digests(source: Source) -> list[str]:
    return [layer["digest"] for layer in source.document["layers"]]


async def test_killed_at_any_moment(
    tmp_path: Path, proxy: FaultProxy, source: Source, starters: list[Starter], pulls: Pulls
) -> None:
    """Then pulled again, at once: the right image, and of it only what was missing."""
    dice = random.Random(1)
    text = f"{proxy.address}/killed"
    whole = _time_of_a_pull(text, starters[0], tmp_path / "whole")
    early = late = resumed = 0
    for _ in range(KILLS):
        roots = Roots(root=str(tmp_path / "root"), run=str(tmp_path / "run"))
        pid = starters[0].start(text, roots)
        if not starters[0].ended(dice.uniform(0, whole)):
            with suppress(ProcessLookupError):  # it may end between the look and the kill
                os.kill(pid, signal.SIGKILL)
        code, said = starters[0].end()
        assert code in (0, -signal.SIGKILL), said
        late += code == 0
        store = Store(roots)
        store.layout.create()
        assert unverified(store) == []
        expected = {digest: missing(store, digest, source.blobs[digest]) for digest in digests(source)}
        early += all(expected[digest] == len(source.blobs[digest]) for digest in expected)
        resumed += any(0 < expected[digest] < len(source.blobs[digest]) for digest in expected)
        proxy.forget()
        image = await pulls(text, store)
        assert image.digest == source.digest
        assert {digest: proxy.sent.get(digest, 0) for digest in expected} == expected
        assert await check(store, pulls.unpacker) == []
        store.collector.leftovers(remove=True)
        assert os.listdir(store.layout.ingest) == []
        assert os.listdir(store.layout.leases) == []
        shutil.rmtree(roots.root)
    # All phases were hit: the start, the download, the end.
    assert early < KILLS * 0.8
    assert late < KILLS * 0.5
    assert resumed > KILLS * 0.1


def _time_of_a_pull(text: str, starter: Starter, path: Path) -> float:
    times = []
    for number in range(3):
        before = time.monotonic()
        starter.start(text, Roots(root=f"{path}-{number}", run=f"{path}-run"))
        assert starter.end() == (0, "")
        times.append(time.monotonic() - before)
    return min(times)


async def test_at_once(
    tmp_path: Path, proxy: FaultProxy, source: Source, starters: list[Starter], pulls: Pulls
) -> None:
    """Each blob comes once, whoever fetches it; the others take it from there."""
    text = f"{proxy.address}/killed"
    for number, count in enumerate([2, 5] * 4):
        roots = Roots(root=f"{tmp_path}/{number}", run=f"{tmp_path}/run")
        proxy.forget()
        for starter in starters[:count]:
            starter.start(text, roots)
        assert [starter.end() for starter in starters[:count]] == [(0, "")] * count
        assert {digest: proxy.sent[digest] for digest in digests(source)} == {
            digest: len(source.blobs[digest]) for digest in digests(source)
        }
        store = Store(roots)
        assert store.image(text).digest == source.digest
        assert await check(store, pulls.unpacker) == []
        assert store.collector.leftovers(remove=False).paths == []


async def test_one_of_five_is_killed(
    tmp_path: Path, proxy: FaultProxy, source: Source, starters: list[Starter], pulls: Pulls
) -> None:
    """Whoever waited for it goes on with what it had."""
    text = f"{proxy.address}/killed"
    dice = random.Random(2)
    for number in range(8):
        roots = Roots(root=f"{tmp_path}/{number}", run=f"{tmp_path}/run")
        pids = [starter.start(text, roots) for starter in starters]
        if not starters[0].ended(dice.uniform(0.1, 0.5)):
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        starters[0].end()
        assert [starter.end() for starter in starters[1:]] == [(0, "")] * 4
        store = Store(roots)
        assert store.image(text).digest == source.digest
        assert await check(store, pulls.unpacker) == []
        assert unverified(store) == []
