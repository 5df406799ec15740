"""Connections that are opened before they are asked for."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpcore
import pytest

from crungo.cli import pull as cli
from crungo.image.reference import Reference
from crungo.registry import ahead as module
from crungo.registry import wire
from crungo.registry.ahead import Ahead
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts, Mirror, Registry
from crungo.registry.sockets import SocketBackend
from crungo.registry.wire import Timeouts
from tests.support.fakeregistry import FakeRegistry
from tests.support.scripted import client, good, ref, serving
from tests.support.smallpulls import get, layered, make_store

if TYPE_CHECKING:
    from crungo.config import PullPolicy

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        sock.settimeout(5)
        yield sock


@pytest.fixture
def ahead() -> Iterator[Ahead]:
    with closing(Ahead()) as made:
        yield made


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback counts as a place to which connections take time."""
    monkeypatch.setattr(wire, "is_far", lambda _host: True)


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


@contextmanager
def accepted(listener: socket.socket, count: int) -> Iterator[set[int]]:
    """Accept so many connections: the ports of our ends."""
    with ExitStack() as stack:
        found = set()
        for _ in range(count):
            sock, address = listener.accept()
            stack.enter_context(sock)
            found.add(address[1])
        yield found


async def connected(ahead: Ahead, listener: socket.socket, host: str = "127.0.0.1") -> int:
    """The port of our end of a connection."""
    stream = await SocketBackend(ahead).connect_tcp(host, port_of(listener), timeout=5)
    number: int = stream.get_extra_info("socket").getsockname()[1]
    await stream.aclose()
    return number


async def test_what_is_under_way_is_used_first(ahead: Ahead, listener: socket.socket) -> None:
    ahead.open("127.0.0.1", port_of(listener), 2)
    with accepted(listener, 2) as opened:
        used = [await connected(ahead, listener) for _ in range(3)]
    assert set(used[:2]) == opened
    assert used[2] not in opened


async def test_what_the_server_has_closed_is_not_used(ahead: Ahead, listener: socket.socket) -> None:
    ahead.open("127.0.0.1", port_of(listener), 2)
    for _ in range(2):
        listener.accept()[0].close()
    found = await ahead.take("127.0.0.1", port_of(listener))
    assert found is None


async def test_what_is_old_is_not_used(ahead: Ahead, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH", 0.0)
    ahead.open("127.0.0.1", port_of(listener), 1)
    assert await ahead.take("127.0.0.1", port_of(listener)) is None
    with listener.accept()[0] as theirs:
        assert theirs.recv(1) == b"", "it was closed"


async def test_a_refusal_is_told(ahead: Ahead, listener: socket.socket) -> None:
    port = port_of(listener)
    listener.close()
    ahead.open("127.0.0.1", port, 1)
    with pytest.raises(httpcore.ConnectError):
        await SocketBackend(ahead).connect_tcp("127.0.0.1", port, timeout=5)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[int], list[Any]]]:
    """What names resolve to: the resolver of this machine is asked for numbers alone."""
    known: dict[str, Callable[[int], list[Any]]] = {}
    numeric = socket.getaddrinfo

    def resolve(host: str, port: int, *, flags: int = 0, **options: Any) -> list[Any]:
        if host in known and not flags & socket.AI_NUMERICHOST:
            return known[host](port)
        return numeric(host, port, flags=flags | socket.AI_NUMERICHOST, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def at(*addresses: str) -> Callable[[int], list[Any]]:
    return lambda port: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


async def test_a_name_is_looked_up_once_and_waited_for(
    ahead: Ahead, listener: socket.socket, names: dict[str, Callable[[int], list[Any]]]
) -> None:
    go, asked = threading.Event(), []

    def slow(port: int) -> list[Any]:
        asked.append(port)
        go.wait(5)
        return at("127.0.0.1")(port)

    names["registry.test"] = slow
    ahead.open("registry.test", port_of(listener), 2)
    used: list[int] = []

    async def connect() -> None:
        used.append(await connected(ahead, listener, "registry.test"))

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(connect)
        await anyio.wait_all_tasks_blocked()
        assert not used
        go.set()
    with accepted(listener, 2) as opened:
        assert set(used) == opened
    assert len(asked) == 1


async def test_a_name_that_does_not_resolve(ahead: Ahead, names: dict[str, Callable[[int], list[Any]]]) -> None:
    def unknown(_port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names["registry.test"] = unknown
    ahead.open("registry.test", 443, 1)
    with pytest.raises(httpcore.ConnectError, match="not known"):
        await SocketBackend(ahead).connect_tcp("registry.test", 443, timeout=5)
    assert await ahead.take("registry.test", 443) is None


@pytest.mark.parametrize("name", [f"{'a' * 64}.test", "a..test"])
async def test_a_name_that_no_resolver_can_be_asked_for(ahead: Ahead, name: str) -> None:
    """Such a name is found by who encodes it, before it is found not to be a number."""
    ahead.open(name, 443, 1)
    with pytest.raises(httpcore.ConnectError, match="label"):
        await SocketBackend(ahead).connect_tcp(name, 443, timeout=5)


async def test_an_address_without_a_route_is_passed_over(
    ahead: Ahead,
    listener: socket.socket,
    names: dict[str, Callable[[int], list[Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = module.begin

    def routed(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
        if address[0] == "192.0.2.1":
            raise OSError(errno.ENETUNREACH, "no route")
        return begin(family, address)

    monkeypatch.setattr(module, "begin", routed)
    names["registry.test"] = at("192.0.2.1", "127.0.0.1")
    ahead.open("registry.test", port_of(listener), 1)
    found = await ahead.take("registry.test", port_of(listener))
    assert found is not None
    addresses, sock = found
    sock.close()
    assert [address[0] for _, address in addresses] == ["127.0.0.1", "192.0.2.1"]


async def test_nothing_is_left_open(listener: socket.socket, names: dict[str, Callable[[int], list[Any]]]) -> None:
    go = threading.Event()

    def slow(port: int) -> list[Any]:
        go.wait(5)
        return at("127.0.0.1")(port)

    names["registry.test"] = slow
    ahead = Ahead()
    ahead.open("127.0.0.1", port_of(listener), 1)
    ahead.open("registry.test", port_of(listener), 1)
    resolving = next(thread for thread in threading.enumerate() if thread.name == "resolve")
    ahead.close()
    with listener.accept()[0] as theirs:
        assert theirs.recv(1) == b""
    go.set()
    resolving.join(5)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.usefixtures("far")
async def test_connections_for_blobs_while_the_manifest_comes(registry: FakeRegistry, tmp_path: Path) -> None:
    source = layered(1000, 2000)
    text = registry.add(source)
    opened: list[int] = []
    open_one = Ahead.open

    def watch(self: Ahead, host: str, port: int, count: int) -> None:
        opened.append(count)
        open_one(self, host, port, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ahead, "open", watch)
        async with client() as asking:
            image = await get(text, make_store(tmp_path), asking)
    assert image.digest == source.digest
    assert opened == [6], "so many layers are fetched at once"


@pytest.mark.usefixtures("far")
async def test_idle_connections_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    monkeypatch.setattr(Ahead, "open", lambda _self, _host, _port, count: opened.append(count))
    async with serving(good) as server, client() as registry:
        await registry.head_manifest(ref(server))
        for at_once in (3, 1):
            await registry.prepare_blobs(ref(server), at_once=at_once)
    assert opened == [2]


@pytest.mark.usefixtures("far")
async def test_connections_that_are_under_way_are_counted(
    ahead: Ahead, listener: socket.socket, names: dict[str, Callable[[int], list[Any]]]
) -> None:
    """For the image before, which was not there, or while another one comes: the next does with what was opened."""
    go, port = threading.Event(), port_of(listener)

    def slow(port: int) -> list[Any]:
        go.wait(5)
        return at("127.0.0.1")(port)

    names["registry.test"] = slow
    async with RegistryClient(hosts=Hosts(), certificates=(), ahead=ahead) as registry:
        for at_once in (2, 3, 3):
            await registry.prepare_blobs(Reference.parse(f"registry.test:{port}/x"), at_once=at_once)
        assert ahead.count("registry.test", port) == 3
        go.set()
        found = await ahead.take("registry.test", port)
        assert found is not None
        found[1].close()
        assert ahead.count("registry.test", port) == 2


async def test_none_where_they_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Ahead, "open", never)
    async with serving(good) as server, client() as registry:
        await registry.prepare_blobs(ref(server), at_once=6)
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test")
        await registry.prepare_blobs(ref(server).parse("registry.test/x"), at_once=6)


async def test_tls_and_plain_http_over_what_is_open_already(ahead: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crungo.registry.hosts.is_loopback", lambda _host: False)
    async with serving(good) as server:
        host, _, port = server.host.partition(":")
        ahead.open(host, int(port), 2)
        hosts = Hosts(registries=(Registry(prefix=server.host, insecure=True),))
        timeouts = Timeouts(connect=0.2)  # this server has no answer to TLS
        async with RegistryClient(hosts=hosts, certificates=(), timeouts=timeouts, ahead=ahead) as registry:
            await registry.get_manifest(ref(server))
        assert [asked.method for asked in server.asked] == ["GET"]
        assert server.connections == 2


def test_the_command_opens_one_for_each_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    monkeypatch.setattr(Ahead, "open", lambda _self, host, port, count: opened.extend([(host, port)] * count))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hosts = Hosts(
        registries=(
            Registry(prefix="insecure.test:5000", insecure=True),
            Registry(prefix="blocked.test", blocked=True),
            Registry(prefix="mirrored.test", mirrors=(Mirror(location="mirror.test"),)),
        )
    )

    def seen(*names: str, here: tuple[str, ...] = (), policy: PullPolicy = "always") -> list[tuple[str, int]]:
        opened.clear()
        cli._connect(cli.PullOptions(images=names, policy=policy), hosts, dict.fromkeys(here, ""))
        return list(opened)

    assert seen("secure.test/x") == [("secure.test", 443)]
    assert seen("insecure.test:5000/x") == [("insecure.test", 5000)] * 2
    assert seen("mirrored.test/x") == [("mirror.test", 443)]
    assert seen("alpine") == [("registry-1.docker.io", 443)]
    assert seen("localhost:5000/x", "blocked.test/x") == []
    assert seen("secure.test/x", "other.test/x", here=("secure.test/x",)) == [("other.test", 443)]
    assert seen(*(f"secure.test/x{n}" for n in range(9))) == [("secure.test", 443)] * 3, "for so many at once"
    assert seen("secure.test/x", policy="missing") == [("secure.test", 443)]
    assert seen("secure.test/x", policy="never") == [], "no registry is to be asked"
    monkeypatch.setenv("https_proxy", "http://proxy.test")
    assert seen("secure.test/x") == []
