"""Pulls through a proxy that breaks what can break: the right image or a clear error, and nothing unverified."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from crungo.errors import CrungoError, DigestMismatch, RegistryError
from crungo.image.check import check
from crungo.image.store import Store
from crungo.paths import Roots
from crungo.registry.pull import PullLimits
from crungo.registry.retry import RetryPolicy
from crungo.registry.wire import Timeouts
from tests.support.faultproxy import Fault, FaultProxy, Request, TokenServer
from tests.support.image import Image as Source
from tests.support.image import Layer, make_image, push
from tests.support.pulling import QUICK, Pulls, missing, spawner, unverified
from tests.support.registry import Registry

pytestmark = pytest.mark.anyio

SHORT = Timeouts(connect=5.0, stall=0.25, whole=5.0)
STATUSES = [408, 429, 500, 502, 503, 504]


@pytest.fixture(scope="module")
def source(registry: Registry) -> Source:
    """Four layers of very different sizes, one of them in each compression."""
    dice = random.Random(3)
    layers = [
        Layer().directory("d").file(f"d/{n}", dice.randbytes(size)) for n, size in enumerate((40_000, 260_000, 900))
    ]
    layers.append(Layer().file("d/3", "x" * 50_000).whiteout("d/2").symlink("l", "d/3"))
    image = make_image(layers)
    push(image, registry.address, "x")
    return image


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.address) as running:
        yield running


@pytest.fixture
async def pulls(tmp_path: Path) -> AsyncIterator[Pulls]:
    async with spawner(Roots(root=f"{tmp_path}/spawner", run=f"{tmp_path}/run")) as process:
        yield Pulls(process, timeouts=SHORT)


def make_store(path: Path) -> Store:
    """A store, laid out."""
    store = Store(Roots(root=str(path), run=f"{path}-run"))
    store.layout.create()
    return store


def layers_of(source: Source) -> list[str]:
    return [layer["digest"] for layer in source.document["layers"]]


def left(store: Store) -> list[str]:
    """What is unfinished or claimed."""
    return store.collector.leftovers(remove=False).paths


class Misfortune:
    """Faults by dice: about every third answer is wrong in some way. Thrown under a lock: requests are concurrent."""

    def __init__(self, seed: int, largest: int, share: float) -> None:
        self._dice = random.Random(seed)
        self._largest = largest
        self._share = share
        self._lock = threading.Lock()
        self.never = threading.Event()
        self.kinds: set[str] = set()

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            dice = self._dice
            if dice.random() >= self._share:
                return None
            kind = dice.choice(["drop", "reset", "cut", "status", "status", "corrupt", "hold", "slow"])
            # Small offsets as likely as large ones: the first bytes are where most is decided.
            after = int(self._largest ** dice.random())
            self.kinds.add(kind)
            status = dice.choice(STATUSES)
            asks = {"Retry-After": dice.choice(["0", "1", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])}
        return {
            "drop": Fault(drop=True),
            "reset": Fault(after=after, reset=True),
            "cut": Fault(after=after),
            "status": Fault(status=status, headers=asks if status in (429, 503) else {}),
            "corrupt": Fault(corrupt=after),
            "hold": Fault(after=after, hold=self.never),
            "slow": Fault(pause=0.002),
        }[kind]


async def audit(store: Store, found: list[str]) -> None:
    """Look at the store again and again."""
    while True:
        found += unverified(store)
        await anyio.sleep(0.02)


async def unlucky_pull(text: str, store: Store, pulls: Pulls, source: Source) -> bool:
    """One pull through misfortune; whether it succeeded."""
    wrong: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(audit, store, wrong)
        failure: CrungoError | None = None
        try:
            image = await pulls(text, store)
        except (RegistryError, DigestMismatch) as error:
            failure = error
        group.cancel_scope.cancel()
    assert wrong + unverified(store) == []
    if failure is None:
        assert image.digest == source.digest
        return True
    assert failure.message.isprintable()
    assert store.images() == []
    return False


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7])
async def test_pulls_through_misfortune(
    share: float, tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls
) -> None:
    """34 pulls a share and loop, so 204 in all. Whatever came of it, the next pull fetches what is missing, no more."""
    text = f"{proxy.address}/x"
    largest = max(map(len, source.blobs.values()))
    outcomes = {True: 0, False: 0}
    kinds: set[str] = set()
    patient = pulls.with_timeouts(Timeouts())
    for seed in range(34):
        store = make_store(tmp_path / "store")
        misfortune = Misfortune(seed, largest, share)
        proxy.faults = misfortune
        done = await unlucky_pull(text, store, pulls, source)
        outcomes[done] += 1
        kinds |= misfortune.kinds
        misfortune.never.set()
        proxy.faults = lambda _: None
        expected = {digest: missing(store, digest, source.blobs[digest]) for digest in layers_of(source)}
        proxy.forget()
        image = await patient(text, store)
        assert image.digest == source.digest
        fetched = {digest: proxy.sent.get(digest, 0) for digest in expected}
        assert fetched == expected, f"seed {seed}"
        assert left(store) == []
        if seed % 5 == 0:
            assert await check(store, pulls.unpacker) == []
        shutil.rmtree(tmp_path / "store")
    assert outcomes[True] or share > 0.5
    assert outcomes[False] or share < 0.5
    assert len(kinds) == 7


async def test_retry_after_is_waited_for(tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls) -> None:
    """Each path is refused once; the waits of the configuration and of the layers run side by side."""
    asked = {"Retry-After": "1"}
    proxy.faults = lambda request: Fault(status=429, headers=asked) if request.number == 0 else None
    patient = RetryPolicy(retries=3, delay=0.0)
    before = anyio.current_time()
    await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"), retry=patient)
    assert 2.0 <= anyio.current_time() - before < 15.0  # manifest, blobs


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_registry_that_only_refuses(
    status: int, tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls
) -> None:
    proxy.faults = lambda request: Fault(status=status) if request.blob else None
    store = make_store(tmp_path / "store")
    with pytest.raises(RegistryError, match=f"answered {status} ") as caught:
        await pulls(f"{proxy.address}/x", store)
    assert caught.value.status == status
    tries = Counter(request.blob for request in proxy.requests if request.blob)
    assert max(tries.values()) == 1 + QUICK.retries
    assert store.images() == []
    assert left(store) == []


async def test_silence_is_not_waited_out(tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls) -> None:
    """Each blob stalls in its middle once; what came before the silence need not come again."""
    forever = threading.Event()
    proxy.faults = lambda request: (
        Fault(after=len(source.blobs[request.blob]) // 2, hold=forever) if request.blob and not request.number else None
    )
    store = make_store(tmp_path / "store")
    with anyio.fail_after(10):
        image = await pulls(f"{proxy.address}/x", store)
    forever.set()
    assert image.digest == source.digest
    assert {digest: proxy.sent[digest] for digest in layers_of(source)} == {
        digest: len(source.blobs[digest]) for digest in layers_of(source)
    }


async def test_silence_for_good(tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls) -> None:
    forever = threading.Event()
    proxy.faults = lambda request: Fault(after=1, hold=forever) if request.blob else None
    with pytest.raises(RegistryError, match=f"{proxy.address}: no data for {SHORT.stall:g} seconds"):
        await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"))
    forever.set()


async def test_slow_is_not_silent(tmp_path: Path, proxy: FaultProxy, source: Source) -> None:
    """Each piece comes within the limit, the whole far beyond it."""
    limit = 0.6
    proxy.faults = lambda request: Fault(pause=limit / 6)
    before = anyio.current_time()
    async with spawner(Roots(root=f"{tmp_path}/spawner", run=f"{tmp_path}/run")) as process:
        pulls = Pulls(process, timeouts=Timeouts(connect=5.0, stall=limit, whole=5.0))
        image = await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"), retry=RetryPolicy(retries=0))
    assert image.digest == source.digest
    assert anyio.current_time() - before > 2 * limit


@pytest.mark.parametrize("where", [0, 1000, 200_000])
async def test_wrong_bytes_twice(where: int, tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls) -> None:
    """A registry whose content is wrong each time is named, and nothing of it stays."""
    digest = layers_of(source)[1]
    proxy.faults = lambda request: Fault(corrupt=where) if request.blob == digest else None
    store = make_store(tmp_path / "store")
    with pytest.raises(DigestMismatch, match=f"layer {digest}: what {proxy.address} sends is not what its digest"):
        await pulls(f"{proxy.address}/x", store)
    assert proxy.sent[digest] == 2 * len(source.blobs[digest])
    assert (store.images(), store.blobs.names(), store.layers.names(), left(store)) == ([], [], [], [])


class TestTokens:
    """A registry that asks for tokens, and forgets them."""

    @pytest.mark.parametrize("uses", [2, 3])  # the configuration may take one that was made for a layer
    async def test_tokens_that_run_out(
        self, uses: int, tmp_path: Path, registry: Registry, source: Source, pulls: Pulls
    ) -> None:
        with TokenServer(uses=uses) as tokens, FaultProxy(registry.address, tokens=tokens) as proxy:
            one_at_a_time = PullLimits(layers=1)
            image = await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"), limits=one_at_a_time)
            assert image.digest == source.digest
            assert tokens.issued > 1
            assert set(tokens.scopes) == {"repository:x:pull"}
            assert {digest: proxy.sent[digest] for digest in layers_of(source)} == {
                digest: len(source.blobs[digest]) for digest in layers_of(source)
            }

    async def test_tokens_that_are_good_for_one_request(
        self, tmp_path: Path, registry: Registry, source: Source, pulls: Pulls
    ) -> None:
        """Of requests that are refused at once, all but one find the next token used up."""
        with TokenServer(uses=1) as tokens, FaultProxy(registry.address, tokens=tokens) as proxy:
            image = await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"))
            assert image.digest == source.digest
            answered = len(source.blobs) + 1
            assert tokens.issued >= answered
            assert len(proxy.requests) <= 3 * answered

    async def test_a_token_that_expires_between_the_halves_of_a_blob(
        self, tmp_path: Path, registry: Registry, source: Source, pulls: Pulls
    ) -> None:
        with TokenServer() as tokens, FaultProxy(registry.address, tokens=tokens) as proxy:
            digest = layers_of(source)[1]

            def fault(request: Request) -> Fault | None:
                if request.blob != digest:
                    return None
                if request.number == 0:
                    return Fault(after=100_000)
                if request.number == 1:
                    tokens.expire()
                return None

            proxy.faults = fault
            image = await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"))
            assert image.digest == source.digest
            assert tokens.issued == 2

    async def test_a_token_server_that_gives_bad_tokens(
        self, tmp_path: Path, registry: Registry, source: Source, pulls: Pulls
    ) -> None:
        with TokenServer() as tokens, FaultProxy(registry.address, tokens=tokens) as proxy:
            proxy.faults = lambda _: tokens.expire()
            with pytest.raises(RegistryError, match="401 Unauthorized"):
                await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"))
            assert tokens.issued == 1


class TestRedirects:
    """Blobs that are kept on another host, which has no business with the registry's tokens."""

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_authorization_does_not_follow(
        self, status: int, tmp_path: Path, registry: Registry, source: Source, pulls: Pulls
    ) -> None:
        with (
            FaultProxy(registry.address, host="127.0.0.2") as other,
            TokenServer() as tokens,
            FaultProxy(registry.address, tokens=tokens) as proxy,
        ):
            proxy.faults = lambda request: (
                Fault(status=status, headers={"Location": f"http://{other.address}{request.path}?signature=1"})
                if request.blob
                else None
            )
            image = await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"))
            assert image.digest == source.digest
            assert {request.blob for request in other.requests} == {*layers_of(source), image.id}
            assert not any("authorization" in request.headers for request in other.requests)
            assert any("authorization" in request.headers for request in proxy.requests)
            assert proxy.sent.keys() == {""}

    async def test_the_other_host_breaks(
        self, tmp_path: Path, registry: Registry, source: Source, pulls: Pulls
    ) -> None:
        """What is missing is asked for again at the registry, which may say another place by then."""
        with FaultProxy(registry.address, host="127.0.0.2") as other, FaultProxy(registry.address) as proxy:
            proxy.faults = lambda request: (
                Fault(status=307, headers={"Location": f"http://{other.address}{request.path}"})
                if request.blob
                else None
            )
            other.faults = lambda request: Fault(after=300, reset=True) if not request.number else None
            image = await pulls(f"{proxy.address}/x", make_store(tmp_path / "store"))
            assert image.digest == source.digest
            assert len(proxy.requests) > len(source.blobs) + 1

    @pytest.mark.parametrize(
        "location", ["/v2/x/blobs/loop", "http://127.0.0.1:1/gone", "ftp://127.0.0.1/x", "http://["]
    )
    async def test_redirects_to_nowhere(
        self, location: str, tmp_path: Path, proxy: FaultProxy, source: Source, pulls: Pulls
    ) -> None:
        proxy.faults = lambda request: Fault(status=307, headers={"Location": location}) if request.blob else None
        store = make_store(tmp_path / "store")
        with pytest.raises(RegistryError):
            await pulls(f"{proxy.address}/x", store)
        assert store.images() == []
