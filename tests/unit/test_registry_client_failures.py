"""The client and registries that fail, cannot be reached, are blocked, or have mirrors."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterable, Callable
from typing import cast

import anyio.lowlevel
import httpcore
import pytest

from crungo.errors import AuthenticationError, ImageNotFound, RegistryError
from crungo.image.reference import Reference
from crungo.registry.headers import Headers
from crungo.registry.hosts import Hosts, Mirror, Registry
from crungo.registry.transport import Response, Transport
from crungo.registry.urls import Url
from tests.support.scripted import (
    BLOB,
    MANIFEST,
    Asked,
    Reply,
    Server,
    Sleeps,
    client,
    good,
    received,
    ref,
    serving,
    sha256,
)

pytestmark = pytest.mark.anyio


async def test_400_to_plain_http_means_tls() -> None:
    async with serving(lambda _: Reply(400)) as server, client(connect=0.2, retries=0) as registry:
        for ask in (registry.get_manifest, registry.head_manifest):
            with pytest.raises(RegistryError, match="answered 400") as caught:
                await ask(ref(server))
            assert caught.value.status == 400
        assert len(server.asked) == 2, (
            "both were asked by plain http, and then with TLS, which this server does not know"
        )


def not_trusted() -> Exception:
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    error.verify_code, error.verify_message = 18, "self-signed certificate"
    return error


def alert() -> Exception:
    error = ssl.SSLError()
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    return error


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (404, ImageNotFound, "answered 404"),
        (401, AuthenticationError, "answered 401"),
        (503, RegistryError, "answered 503"),
        (not_trusted, RegistryError, "certificate is not trusted"),
        (alert, RegistryError, "alert certificate required"),
    ],
)
async def test_what_a_server_of_tls_says_to_plain_http_hides_nothing(
    answer: int | Callable[[], Exception],
    kind: type[RegistryError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def send(_self: Transport, _method: str, url: Url, *_rest: object, **_streamed: bool) -> Response:
        if url.scheme == "https" and not isinstance(answer, int):
            raise httpcore.ConnectError from answer()
        status = answer if url.scheme == "https" else 400
        return Response(
            status=cast("int", status),
            headers=Headers([(b"Content-Length", b"0")]),
            body=cast("AsyncIterable[bytes]", httpcore.Response(200, content=b"").stream),
            connection=httpcore.AsyncMockStream([]),
            aclose=anyio.lowlevel.checkpoint,
        )

    monkeypatch.setattr(Transport, "send", send)
    async with client(retries=1) as registry:
        with pytest.raises(RegistryError, match=message) as caught:
            await registry.get_manifest(Reference.parse("127.0.0.1:5000/a/b:1"))
        assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "redirected more than 8 times"),
        ("/again", "redirected more than 8 times"),
        ("ftp://127.0.0.1/x", "is not followed"),
        ("file:///etc/passwd", "is not followed"),
        ("http://[::1/", "malformed redirect"),
        ("http://127.0.0.1:99999999/", "is not followed"),
    ],
)
async def test_redirects_that_lead_nowhere(location: str, message: str) -> None:
    async with serving(lambda _: Reply(302, {"Location": location})) as server, client() as registry:
        with pytest.raises(RegistryError, match=message):
            await registry.get_manifest(ref(server))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=b"", endless=b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
        Reply(raw=b"HTTP/1.1 200 OK\r\nX-Long: ", endless=b"x"),
    ],
    ids=["interim answers", "a header by the byte"],
)
async def test_a_head_without_end(reply: Reply) -> None:
    """Something always comes, so that it is no stall."""
    async with serving(lambda _: reply) as server, client(retries=1, connect=0.2, head=0.3) as registry:
        with pytest.raises(RegistryError, match="no answer within"), anyio.fail_after(10):
            await registry.get_manifest(ref(server))
        assert len(server.asked) == 2
        with pytest.raises(RegistryError, match="no answer within"), anyio.fail_after(10):
            async with registry.open_blob(ref(server), sha256(b"")):
                pass


async def test_waiting_for_a_connection_is_no_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crungo.registry.transport.MOST_CONNECTIONS", 1)
    async with (
        serving(good) as server,
        client(retries=0, head=0.3) as registry,
        anyio.create_task_group() as group,
        registry.open_blob(ref(server), sha256(BLOB)) as stream,
    ):
        group.start_soon(registry.get_manifest, ref(server))
        await anyio.sleep(0.6)
        assert await received(stream) == BLOB


async def test_a_registry_that_comes_back() -> None:
    replies = [
        Reply(503),
        Reply(429, {"Retry-After": "77", "Connection": "close"}),
        Reply(raw=b""),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
    ]

    def handler(asked: Asked) -> Reply | None:
        return replies.pop(0) if replies else good(asked)

    sleeps = Sleeps()
    async with serving(handler) as server, client(sleeps=sleeps, retries=4) as registry:
        assert (await registry.get_manifest(ref(server))).body == MANIFEST
        assert sleeps == [1.0, 77.0, 4.0, 8.0]


@pytest.mark.parametrize("reset", [False, True])
async def test_a_kept_connection_that_ends_when_it_is_used_again(reset: bool) -> None:
    """The server, or what is in between, gives up idle connections at a moment of its own: that is no failure."""
    seen: set[int] = set()

    def handler(asked: Asked) -> Reply | None:
        if asked.connection in seen:
            return Reply(raw=b"", reset=reset)
        seen.add(asked.connection)
        return good(asked)

    async with serving(handler) as server, client(retries=0) as registry:
        for _ in range(2):
            assert (await registry.get_manifest(ref(server))).body == MANIFEST
        # Two are kept, and each of them ends when it is used.
        async with registry.open_blob(ref(server), sha256(BLOB)) as one:
            assert (await registry.get_manifest(ref(server))).body == MANIFEST
            assert await received(one) == BLOB
        async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
            assert await received(stream) == BLOB
        assert server.connections == 5, "one for each request that was answered"


async def test_a_registry_that_does_not_come_back() -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\\u001b[1m down"}]}'
    reply = Reply(429, {"Content-Type": "application/json"}, body)
    sleeps = Sleeps()
    async with serving(lambda _: reply) as server, client(sleeps=sleeps) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.get_manifest(ref(server))
        assert str(caught.value) == (
            f"manifest {server.host}/a/b:1: {server.host} answered 429 Too Many Requests"
            " (TOOMANYREQUESTS: slow [1m down)"
        )
        assert caught.value.status == 429
        assert len(sleeps) == 3
        server.handler = lambda _: Reply(404)
        with pytest.raises(ImageNotFound):
            await registry.get_manifest(ref(server))
        assert len(sleeps) == 3


async def test_hosts_that_cannot_be_reached() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        sleeps = Sleeps()
        async with client(sleeps=sleeps) as registry:
            with pytest.raises(RegistryError) as caught:
                await registry.get_manifest(Reference.parse(f"127.0.0.1:{port}/x:1"))
            assert str(caught.value) == f"manifest 127.0.0.1:{port}/x:1: 127.0.0.1:{port}: connection refused"
            assert sleeps == []
            with pytest.raises(RegistryError, match=r"nowhere\.invalid: "):
                await registry.get_manifest(Reference.parse("nowhere.invalid/x:1"))


async def test_a_server_that_has_answered_is_waited_for() -> None:
    sleeps = Sleeps()
    async with client(sleeps=sleeps) as registry:
        async with serving(good) as server:
            await registry.get_manifest(ref(server))
        with pytest.raises(RegistryError, match=r": connection refused$"):
            await registry.get_manifest(ref(server))
    assert len(sleeps) == 3


async def test_a_server_that_speaks_no_http() -> None:
    async with (
        serving(lambda _: Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n")) as server,
        client(retries=0, connect=0.2) as registry,
    ):
        with pytest.raises(RegistryError, match=f"^manifest .*: {server.host}: "):
            await registry.get_manifest(ref(server))


def mirrored(server: Server, *mirrors: str) -> Hosts:
    locations = tuple(Mirror(location=mirror) for mirror in mirrors)
    return Hosts(registries=(Registry(prefix=server.host, location=server.host, mirrors=locations),))


async def test_mirrors() -> None:
    async with (
        serving(good) as server,
        serving(good) as mirror,
        client(hosts=mirrored(server, mirror.host)) as registry,
    ):
        await registry.get_manifest(ref(server))
        assert (len(server.asked), len(mirror.asked)) == (0, 1)
        mirror.handler = lambda _: Reply(body=b"corrupted")
        got = await registry.get_manifest(ref(server, f"a/b@{sha256(MANIFEST)}"))
        assert got.body == MANIFEST
        await registry.get_manifest(ref(server))
        assert (len(server.asked), len(mirror.asked)) == (2, 2), "a mirror that failed is asked last from then on"
        server.handler = lambda _: Reply(404)
        with pytest.raises(ImageNotFound, match=f"{server.host} answered 404"):
            await registry.get_manifest(ref(server, "a/b@" + sha256(b"x")))


async def test_a_dead_mirror_costs_one_attempt() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
        sleeps = Sleeps()
        async with serving(good) as server, client(hosts=mirrored(server, dead), sleeps=sleeps) as registry:
            await registry.get_manifest(ref(server))
            await registry.get_manifest(ref(server))
        assert sleeps == []


async def test_blocked() -> None:
    async with serving(good) as server:
        hosts = Hosts(registries=(Registry(prefix=server.host, location=server.host, blocked=True),))
        async with client(hosts=hosts) as registry:
            with pytest.raises(RegistryError, match="blocked"):
                await registry.get_manifest(ref(server))
        assert server.asked == []
