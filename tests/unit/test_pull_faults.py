"""Connections that break, and registries that fail: the right image in the end, or a clear error."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from crungo.errors import RegistryError
from crungo.registry.client import RegistryClient
from crungo.registry.progress import ImageRetry, LayerRetry, ProgressEvent
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.smallpulls import QUICK, get, layered, leftovers, make_store, on

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_breaks_are_continued(
    reset: bool, chunked: bool, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(500_000)
    text = registry.add(source)
    registry.faults = on(
        source, lambda request: Fault(after=150_000, reset=reset, chunked=chunked) if request.number < 3 else None
    )
    events: list[ProgressEvent] = []
    store = make_store(tmp_path)
    image = await get(text, store, client, progress=events.append)
    assert store.image(text) == image
    assert sum(isinstance(event, LayerRetry) for event in events) == 3
    size = source.document["layers"][0]["size"]
    sent = registry.bytes_of(source.document["layers"][0]["digest"])
    # A reset may drop what was sent and not yet read; an orderly end loses nothing.
    assert sent == size if not reset else size <= sent < 2 * size


async def test_gives_up_after_retries(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(500_000, 10)
    text = registry.add(source)
    registry.faults = on(source, lambda request: Fault(after=10 if request.number else 100_000, pause=0.1))
    store = make_store(tmp_path)
    events: list[ProgressEvent] = []
    with pytest.raises(RegistryError) as caught:
        await get(text, store, client, progress=events.append)
    digest = source.document["layers"][0]["digest"]
    assert len(registry.requests(digest)) == 4
    reasons = [event.reason for event in events if isinstance(event, LayerRetry)]
    assert len(reasons) == 3, "no more are told than are made"
    assert str(caught.value).startswith(f"blob {digest} of {text.removesuffix(':latest')}: {registry.address}: ")
    assert all(reason.startswith(f"{registry.address}: ") for reason in reasons), "which layer is known"
    assert store.images() == []
    registry.faults = lambda _: None
    registry.sent.clear()
    await get(text, store, client)
    size = source.document["layers"][0]["size"]
    assert registry.bytes_of(source.document["layers"][0]["digest"]) == size - 100_030
    assert registry.bytes_of(source.document["layers"][1]["digest"]) == 0
    assert leftovers(store) == []


@pytest.mark.parametrize("status", [429, 503])
async def test_tries_do_not_multiply(
    status: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    source = layered(1000)
    text = registry.add(source)
    registry.faults = on(source, lambda _: Fault(status=status))
    with pytest.raises(RegistryError, match=str(status)):
        await get(text, make_store(tmp_path), client)
    assert len(registry.requests(source.document["layers"][0]["digest"])) == 1 + QUICK.retries


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_transient_answers(status: int, registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(1000)
    text = registry.add(source)
    registry.faults = lambda request: Fault(status=status) if request.number < 2 else None
    events: list[ProgressEvent] = []
    await get(text, make_store(tmp_path), client, progress=events.append)
    told = [(type(event), event.reason) for event in events if isinstance(event, (ImageRetry, LayerRetry))]
    assert sorted(kind.__name__ for kind, _ in told) == ["ImageRetry"] * 2 + ["LayerRetry"] * 2
    assert all(reason.startswith(f"{registry.address} answered {status} ") for _, reason in told)


async def test_a_wait_is_told_before_it_begins(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    """A registry that limits its callers may ask for minutes."""
    text = registry.add(layered(10))
    registry.faults = lambda _: Fault(status=429, headers={"Retry-After": "60"})
    told: list[ProgressEvent] = []
    with anyio.move_on_after(5):
        async with anyio.create_task_group() as group:

            def tell(event: ProgressEvent) -> None:
                told.append(event)
                group.cancel_scope.cancel()

            await get(text, make_store(tmp_path), client, progress=tell)
    (event,) = told
    assert isinstance(event, ImageRetry)
    assert event.wait == 60


async def test_ranges_ignored_on_resume(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(500_000)
    text = registry.add(source)
    registry.faults = on(
        source, lambda request: Fault(after=200_000 if request.number == 0 else None, ignore_range=True)
    )
    await get(text, make_store(tmp_path), client)


async def test_ranges_refused_on_resume(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    """What was begun could never be completed else, however often it is pulled."""
    source = layered(500_000)
    text = registry.add(source)

    def fault(request: Request) -> Fault | None:
        return Fault(status=416) if request.range else Fault(after=200_000 if request.number == 0 else None)

    registry.faults = on(source, fault)
    await get(text, make_store(tmp_path), client)


async def test_corruption_on_the_way_passes(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(100_000)
    text = registry.add(source)
    registry.faults = on(source, lambda request: Fault(corrupt=50_000) if request.number == 0 else None)
    image = await get(text, make_store(tmp_path), client)
    assert image.digest == source.digest


async def test_wrong_part_of_an_earlier_pull(registry: FakeRegistry, client: RegistryClient, tmp_path: Path) -> None:
    source = layered(400_000)
    text = registry.add(source)
    store = make_store(tmp_path)
    registry.faults = on(
        source, lambda request: Fault(after=100_000, corrupt=500) if request.number == 0 else Fault(status=403)
    )
    with pytest.raises(RegistryError):
        await get(text, store, client)
    registry.faults = lambda _: None
    assert (await get(text, store, client)).digest == source.digest
    assert leftovers(store) == []
