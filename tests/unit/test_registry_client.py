"""The client against a registry of its own on loopback, one that can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSListener

from crungo.errors import (
    AuthenticationError,
    DigestMismatch,
    ImageError,
    ImageNotFound,
    RegistryError,
)
from crungo.image.reference import Reference
from crungo.registry.authfiles import Credentials
from crungo.registry.client import LARGEST_MANIFEST, BlobStream, FetchedManifest, ManifestHead, RegistryClient
from crungo.registry.credentials import Credential
from crungo.registry.hosts import Hosts, Mirror, Registry
from crungo.registry.retry import Backoff, RetryPolicy, is_transient
from crungo.registry.wire import Timeouts

pytestmark = pytest.mark.anyio

MANIFEST = b'{"schemaVersion": 2}'
KIND = "application/vnd.oci.image.manifest.v1+json"
BLOB = os.urandom(700_001)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Asked:
    """A request as it arrived. Names of headers are in lower case; ``connection`` numbers the connections."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None  # sent as it is, and the connection closed
    reset: bool = False  # after what is sent, by RST
    pause: float = 0.0  # seconds before the second half of the body


Handler = Callable[[Asked], Reply | None]


class Server:
    """An HTTP/1.1 server of two dozen lines; ``handler`` answers, and None from it is a 404."""

    def __init__(self, handler: Handler, port: int, scheme: str) -> None:
        self.handler = handler
        self.asked: list[Asked] = []
        self.host = f"127.0.0.1:{port}"
        self.url = f"{scheme}://{self.host}"
        self._connections = 0

    @property
    def paths(self) -> list[str]:
        return [asked.target for asked in self.asked]

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        self._connections += 1
        number = self._connections
        buffer = b""
        try:
            while True:
                while b"\r\n\r\n" not in buffer:
                    buffer += await stream.receive()
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                length = int(headers.get("content-length", 0))
                while len(buffer) < length:
                    buffer += await stream.receive()
                asked = Asked(method, target, headers, buffer[:length], number)
                buffer = buffer[length:]
                self.asked.append(asked)
                if not await self._reply(stream, asked, self.handler(asked) or Reply(404)):
                    return
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
            pass
        finally:
            await anyio.aclose_forcefully(stream)

    async def _reply(self, stream: anyio.abc.ByteStream, asked: Asked, reply: Reply) -> bool:
        if reply.raw is not None:
            await stream.send(reply.raw)
        else:
            headers = {"Content-Length": str(len(reply.body)), **reply.headers}
            head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            body = b"" if asked.method == "HEAD" else reply.body
            half = len(body) // 2 if reply.pause else len(body)
            await stream.send(head.encode("latin-1") + b"\r\n" + body[:half])
            if reply.pause:
                await anyio.sleep(reply.pause)
                await stream.send(body[half:])
        if reply.reset:
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        return reply.raw is None and not reply.reset


@asynccontextmanager
async def serving(handler: Handler, *, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        server = Server(handler, port, "https" if context else "http")
        both: anyio.abc.Listener[anyio.abc.ByteStream] = listener
        if context:
            both = TLSListener(listener, context, standard_compatible=False)
        async with anyio.create_task_group() as group:
            group.start_soon(both.serve, server.serve)
            yield server
            group.cancel_scope.cancel()


def ranged(asked: Asked, blob: bytes = BLOB) -> Reply:
    """What a good registry answers to a request for a blob."""
    wanted = asked.headers.get("range")
    if wanted is None:
        return Reply(body=blob)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) + 1 if last else len(blob), len(blob))
    if start >= len(blob):
        return Reply(416, {"Content-Range": f"bytes */{len(blob)}"}, b"no such range")
    return Reply(206, {"Content-Range": f"bytes {start}-{end - 1}/{len(blob)}"}, blob[start:end])


def good(asked: Asked) -> Reply | None:
    if asked.target.startswith("/v2/a/b/manifests/"):
        return Reply(200, {"Content-Type": KIND, "Docker-Content-Digest": sha256(MANIFEST)}, MANIFEST)
    return ranged(asked) if asked.target.startswith("/v2/a/b/blobs/") else None


class Sleeps(list[float]):
    def backoff(self, policy: RetryPolicy) -> Backoff:
        async def sleep(seconds: float) -> None:
            self.append(seconds)
            await anyio.lowlevel.checkpoint()

        return Backoff(policy=policy, sleep=sleep, uniform=lambda: 1.0)


class Known(Credentials):
    """Credentials of one registry."""

    def __init__(self, **credentials: Credential) -> None:
        super().__init__(())
        self.known = {name.replace("_", "."): credential for name, credential in credentials.items()}

    async def find(self, registry: str, repository: str = "") -> Credential | None:
        return self.known.get(registry.partition(":")[0])


USER = Known(**{"127_0_0_1": Credential(username="me", password="pw")})


def client(
    *,
    hosts: Hosts | None = None,
    credentials: Credentials | None = None,
    certificates: Path | None = None,
    stall: float = 5.0,
    connect: float = 5.0,
    sleeps: Sleeps | None = None,
    retries: int = 3,
) -> RegistryClient:
    return RegistryClient(
        hosts=hosts or Hosts(),
        credentials=credentials or Credentials(()),
        certificates=(str(certificates),) if certificates else (),
        retry=RetryPolicy(retries=retries, base=1.0),
        timeouts=Timeouts(connect=connect, stall=stall, whole=10.0),
        backoff=(Sleeps() if sleeps is None else sleeps).backoff,
    )


def ref(server: Server, rest: str = "a/b:1") -> Reference:
    return Reference.parse(f"{server.host}/{rest}")


async def collect(stream: BlobStream, pieces: list[bytes]) -> None:
    async for chunk in stream.chunks():
        pieces.append(chunk)


async def received(stream: BlobStream) -> bytes:
    pieces: list[bytes] = []
    await collect(stream, pieces)
    return b"".join(pieces)


async def test_a_manifest() -> None:
    async with serving(good) as server, client() as registry:
        got = await registry.get_manifest(ref(server))
        assert got == FetchedManifest(body=MANIFEST, media_type=KIND, digest=sha256(MANIFEST))
        assert await registry.get_manifest(ref(server, f"a/b@{sha256(MANIFEST)}")) == got
        assert await registry.get_manifest(ref(server), digest_or_tag=sha256(MANIFEST)) == got
        (first, second, third) = server.asked
        assert first.target == "/v2/a/b/manifests/1"
        assert second.target == third.target == f"/v2/a/b/manifests/{sha256(MANIFEST)}"
        assert KIND in first.headers["accept"]
        assert first.headers["accept-encoding"] == "identity"
        assert "authorization" not in first.headers
        assert third.connection == 1, "the connection was not kept alive"


async def test_a_manifest_that_is_not_what_was_asked_for() -> None:
    wrong = sha256(b"another")
    async with serving(good) as server, client() as registry:
        with pytest.raises(
            DigestMismatch, match=f"127.0.0.1:.* sent content of digest {sha256(MANIFEST)}, not {wrong}"
        ):
            await registry.get_manifest(ref(server), digest_or_tag=wrong)
        server.handler = lambda _: Reply(200, {"Docker-Content-Digest": wrong}, MANIFEST)
        with pytest.raises(DigestMismatch):
            await registry.get_manifest(ref(server))
        server.handler = lambda _: Reply(200, {"Docker-Content-Digest": "nonsense"}, MANIFEST)
        assert (await registry.get_manifest(ref(server))).digest == sha256(MANIFEST)


async def test_manifests_of_absurd_size() -> None:
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 6
    async with serving(lambda _: Reply(body=b" " * (LARGEST_MANIFEST + 1))) as server, client() as registry:
        with pytest.raises(RegistryError, match="the answer is longer than 4194304 bytes"):
            await registry.get_manifest(ref(server))
        server.handler = lambda _: Reply(raw=endless)
        with pytest.raises(RegistryError, match="the answer is longer than 4194304 bytes"):
            await registry.get_manifest(ref(server))


@pytest.mark.parametrize("suffix", ["json", "prettyjws"])
async def test_schema_1_is_refused(suffix: str) -> None:
    kind = f"application/vnd.docker.distribution.manifest.v1+{suffix}; charset=utf-8"
    reply = Reply(200, {"Content-Type": kind, "Docker-Content-Digest": sha256(b"")})
    async with serving(lambda _: reply) as server, client() as registry:
        for ask in (registry.get_manifest, registry.head_manifest):
            with pytest.raises(ImageError, match="schema 1 is not supported"):
                await ask(ref(server))


async def test_head() -> None:
    async with serving(good) as server, client() as registry:
        head = await registry.head_manifest(ref(server))
        assert head == ManifestHead(digest=sha256(MANIFEST), size=len(MANIFEST), media_type=KIND)
        assert await registry.head_manifest(ref(server)) == head
        assert [asked.connection for asked in server.asked] == [1, 1]
        for reply in (Reply(405), Reply(501), Reply(200, {"Content-Type": KIND})):
            server.handler = lambda _, reply=reply: reply  # type: ignore[misc]
            assert await registry.head_manifest(ref(server)) is None
        server.handler = lambda _: Reply(404)
        with pytest.raises(ImageNotFound):
            await registry.head_manifest(ref(server))


async def test_400_to_plain_http_means_tls() -> None:
    async with serving(lambda _: Reply(400)) as server, client(connect=0.2, retries=0) as registry:
        for ask in (registry.get_manifest, registry.head_manifest):
            with pytest.raises(RegistryError, match="answered 400") as caught:
                await ask(ref(server))
            assert caught.value.status == 400
        assert len(server.asked) == 2, (
            "both were asked by plain http, and then with TLS, which this server does not know"
        )


async def test_a_whole_blob_and_the_connection_again() -> None:
    async with serving(good) as server, client() as registry:
        for _ in range(2):
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert (stream.start, stream.end, stream.total, stream.ranged) == (0, len(BLOB), len(BLOB), True)
                assert await received(stream) == BLOB
        assert "range" not in server.asked[0].headers
        assert [asked.connection for asked in server.asked] == [1, 1]


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, None), (100_000, 300_000), (700_000, None), (0, 10**9)])
async def test_parts_of_a_blob(start: int, end: int | None) -> None:
    async with serving(good) as server, client() as registry:
        async with registry.open_blob(ref(server), sha256(BLOB), start=start, end=end) as stream:
            assert stream.ranged
            assert (stream.start, stream.total) == (start, len(BLOB))
            assert await received(stream) == BLOB[start:end]
        server.handler = lambda _: Reply(body=BLOB)  # a server that knows no ranges
        async with registry.open_blob(ref(server), sha256(BLOB), start=start, end=end) as stream:
            assert not stream.ranged
            assert (stream.start, stream.total) == (start, len(BLOB))
            assert await received(stream) == BLOB[start:end]


async def test_a_resume_of_what_is_complete() -> None:
    async with serving(good) as server, client() as registry:
        async with registry.open_blob(ref(server), sha256(BLOB), start=len(BLOB)) as stream:
            assert stream.total == len(BLOB)
            assert await received(stream) == b""
        with pytest.raises(RegistryError, match="has no byte 700002, it has 700001") as caught:
            async with registry.open_blob(ref(server), sha256(BLOB), start=len(BLOB) + 1):
                pass
        assert caught.value.status == 416
        server.handler = lambda _: Reply(body=BLOB)
        with pytest.raises(RegistryError, match="has 700001 bytes, not 700002"):
            async with registry.open_blob(ref(server), sha256(BLOB), start=len(BLOB) + 1):
                pass


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-9/100", "bytes 11-19/100", "bytes 10-30/100", "bytes 10-19", "items 10-19/100", "bytes */100", ""],
)
async def test_another_range_than_was_asked_for(content_range: str) -> None:
    reply = Reply(206, {"Content-Range": content_range}, b"x" * 10)
    async with serving(lambda _: reply) as server, client() as registry:
        with pytest.raises(RegistryError, match="another range"):
            async with registry.open_blob(ref(server), sha256(BLOB), start=10, end=20):
                pass


@pytest.mark.parametrize(
    ("reply", "got"),
    [
        (Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 60), 60),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3c\r\n" + b"x" * 60), 60),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"), 0),
        (Reply(raw=b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99/100\r\n\r\n" + b"x" * 60), 60),
        (Reply(headers={"Content-Length": "100"}, body=b"x" * 60, reset=True), None),
        (Reply(headers={"Content-Length": "100"}, body=b"x" * 60, pause=1.0), 30),
    ],
)
async def test_a_body_that_breaks_off(reply: Reply, got: int | None) -> None:
    async with serving(lambda _: reply) as server, client(stall=0.2) as registry:
        pieces: list[bytes] = []
        async with registry.open_blob(ref(server), sha256(BLOB), end=100) as stream:
            with pytest.raises(RegistryError, match=r"^blob sha256:.* of 127\.0\.0\.1:.*/a/b: 127\.0\.0\.1") as caught:
                await collect(stream, pieces)
        assert is_transient(caught.value)
        assert got is None or len(b"".join(pieces)) == got


async def test_a_slow_stream_is_no_stalled_one() -> None:
    reply = Reply(body=b"x" * 10, pause=0.3)
    async with (
        serving(lambda _: reply) as server,
        client(stall=1.0) as registry,
        registry.open_blob(ref(server), sha256(BLOB)) as stream,
    ):
        assert await received(stream) == b"x" * 10


async def test_leaving_a_blob_in_its_middle() -> None:
    async with serving(good) as server, client() as registry:
        async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
            async for chunk in stream.chunks():
                assert chunk
                break
        with anyio.move_on_after(0.1) as scope:
            server.handler = lambda _: Reply(body=b"x" * 10, pause=5.0)
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                await received(stream)
        assert scope.cancelled_caught
        server.handler = good
        async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
            assert await received(stream) == BLOB


async def test_many_blobs_at_once() -> None:
    async with serving(good) as server, client() as registry:

        async def fetch() -> None:
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert await received(stream) == BLOB

        async with anyio.create_task_group() as group:
            for _ in range(24):
                group.start_soon(fetch)
        assert len(server.asked) == 24


def token_registry(tokens: list[str], *, realm: str = "") -> Handler:
    """A registry that takes the last of ``tokens``; its token server, on the same port, hands out new ones."""

    def handler(asked: Asked) -> Reply | None:
        if asked.target.startswith("/token"):
            if asked.headers.get("authorization") not in (None, "Basic bWU6cHc="):
                return Reply(
                    401, {"Content-Type": "application/json"}, b'{"details": "incorrect username or password"}'
                )
            tokens.append(f"token{len(tokens)}")
            return Reply(body=json.dumps({"token": tokens[-1], "expires_in": 300, "refresh_token": "keep"}).encode())
        if tokens and asked.headers.get("authorization") == f"Bearer {tokens[-1]}":
            return Reply(200) if asked.target == "/v2/" else good(asked)
        where = realm or f"http://{asked.headers['host']}/token"
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{where}",service="s",scope="repository:a/b:pull"'})

    return handler


async def test_tokens_are_fetched_once_and_again_when_refused() -> None:
    tokens: list[str] = []
    async with serving(token_registry(tokens)) as server, client(credentials=USER) as registry:
        await registry.get_manifest(ref(server))
        await registry.get_manifest(ref(server))
        assert [asked.target.partition("?")[0] for asked in server.asked] == [
            "/v2/a/b/manifests/1",
            "/token",
            "/v2/a/b/manifests/1",
            "/v2/a/b/manifests/1",
        ]
        assert server.asked[1].target == "/token?service=s&scope=repository%3Aa%2Fb%3Apull&account=me"
        tokens.append("revoked")

        async def fetch() -> None:
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert await received(stream) == BLOB

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(fetch)
        assert len(tokens) == 3, "eight requests that were refused at once fetch one token"


async def test_a_token_is_renewed_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []
    now = 1000.0
    monkeypatch.setattr("crungo.registry.tokens.time.monotonic", lambda: now)
    async with serving(token_registry(tokens)) as server, client() as registry:
        await registry.get_manifest(ref(server))
        now += 289
        await registry.get_manifest(ref(server))
        assert len(tokens) == 1
        now += 2
        await registry.get_manifest(ref(server))
        assert len(tokens) == 2
        assert server.paths[-2].startswith("/token"), "renewed without being refused first"


async def test_wrong_credentials_are_told() -> None:
    wrong = Known(**{"127_0_0_1": Credential(username="me", password="no")})
    async with serving(token_registry([])) as server, client(credentials=wrong) as registry:
        with pytest.raises(AuthenticationError) as caught:
            await registry.get_manifest(ref(server))
        assert str(caught.value) == (
            f"manifest {server.host}/a/b:1: token server of {server.host} answered 401 Unauthorized"
            " (incorrect username or password)"
        )


async def test_a_broken_helper_matters_only_where_credentials_are_needed(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"credsStore": "missing"}')
    broken = Credentials((str(config),))
    async with serving(token_registry([])) as server, client(credentials=broken) as registry:
        await registry.get_manifest(ref(server))
        server.handler = lambda _: Reply(401, {"WWW-Authenticate": "Basic realm=x"})
        with pytest.raises(AuthenticationError) as caught:
            await registry.get_manifest(ref(server, "other:1"))
        assert caught.value.hint == "docker-credential-missing: not installed"


async def test_basic() -> None:
    def handler(asked: Asked) -> Reply | None:
        if asked.headers.get("authorization") == "Basic bWU6cHc=":
            return good(asked)
        return Reply(401, {"WWW-Authenticate": 'Negotiate, Basic realm="a, b"'})

    async with serving(handler) as server:
        async with client(credentials=USER) as registry:
            await registry.get_manifest(ref(server))
            await registry.get_manifest(ref(server))
            assert len(server.asked) == 3
        async with client() as registry:
            with pytest.raises(AuthenticationError, match="wants a user name and a password"):
                await registry.get_manifest(ref(server))


async def test_login() -> None:
    async with serving(token_registry([])) as server, client() as registry:
        assert await registry.check_login(server.host, "me", "pw") == "keep"
        assert "offline_token=true" in server.asked[1].target
        with pytest.raises(AuthenticationError) as caught:
            await registry.check_login(server.host, "me", "wrong")
        assert caught.value.hint == "check the user name and the password"
        server.handler = lambda asked: Reply(
            200 if asked.headers.get("authorization") == "Basic bWU6cHc=" else 401,
            {"WWW-Authenticate": "Basic realm=x"},
        )
        assert await registry.check_login(f"http://{server.host}/v1/", "me", "pw") is None
        with pytest.raises(AuthenticationError, match=f"^login to {server.host}: "):
            await registry.check_login(server.host, "me", "wrong")


async def test_authorization_follows_no_redirect_to_another_host() -> None:
    async with AsyncExitStack() as stack:
        cdn = await stack.enter_async_context(serving(ranged))
        tokens: list[str] = []
        registry_handler = token_registry(tokens)

        def handler(asked: Asked) -> Reply | None:
            reply = registry_handler(asked)
            if reply and reply.status in (200, 206) and "/blobs/" in asked.target and "second" not in asked.target:
                return Reply(307, {"Location": asked.target + "?second"}, b"moved")
            if "second" in asked.target:
                return Reply(302, {"Location": f"http://user:secret@{cdn.host}/blob?signed=1"}, b"moved")
            return reply

        server = await stack.enter_async_context(serving(handler))
        registry = await stack.enter_async_context(client(credentials=USER))
        async with registry.open_blob(ref(server), sha256(BLOB), start=5, end=9) as stream:
            assert await received(stream) == BLOB[5:9]
        (foreign,) = cdn.asked
        assert "authorization" not in foreign.headers
        assert foreign.headers["range"] == "bytes=5-8"
        own = [asked for asked in server.asked if "second" in asked.target]
        assert own[0].headers["authorization"] == "Bearer token0", "a redirect within the registry keeps it"
        assert {asked.connection for asked in server.asked} == {1}, "short bodies of redirects are read to their end"
        # What another host wants is none of the registry's business: no credentials go to the realm it names.
        cdn.handler = lambda _: Reply(401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})
        count = len(tokens)
        with pytest.raises(AuthenticationError, match=f"{cdn.host} answered 401"):
            async with registry.open_blob(ref(server), sha256(BLOB)):
                pass
        assert len(tokens) == count


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


async def test_a_registry_that_comes_back() -> None:
    replies = [
        Reply(503),
        Reply(429, {"Retry-After": "77"}),
        Reply(raw=b""),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
    ]

    def handler(asked: Asked) -> Reply | None:
        return replies.pop(0) if replies else good(asked)

    sleeps = Sleeps()
    async with serving(handler) as server, client(sleeps=sleeps, retries=4) as registry:
        assert (await registry.get_manifest(ref(server))).body == MANIFEST
        assert sleeps == [1.0, 77.0, 4.0, 8.0]


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


def pages(asked: Asked) -> Reply | None:
    if asked.target == "/v2/a/b/tags/list?n=1000":
        return Reply(200, {"Link": '</v2/a/b/tags/list?last=2>; rel="next"'}, b'{"tags": ["1", "2"]}')
    if asked.target == "/v2/a/b/tags/list?last=2":
        return Reply(body=b'{"tags": ["2", "3"]}')
    return None


async def test_tags() -> None:
    async with serving(pages) as server, client() as registry:
        assert await registry.tags(ref(server)) == ["1", "2", "3"]
        with pytest.raises(ImageNotFound, match=f"^tags of {server.host}/a/c: "):
            await registry.tags(ref(server, "a/c"))
        server.handler = lambda asked: Reply(200, {"Link": f"<{asked.target}>; rel=next"}, b'{"tags": []}')
        with pytest.raises(RegistryError, match="the list has no end"):
            await registry.tags(ref(server))
        for elsewhere in ("http://other.example/v2/x", "/secret", "//other.example/v2/"):
            link = f"<{elsewhere}>; rel=next"
            server.handler = lambda _, link=link: Reply(200, {"Link": link}, b'{"tags": []}')  # type: ignore[misc]
            with pytest.raises(RegistryError, match="the next page is on another server"):
                await registry.tags(ref(server))


async def test_cookies_are_not_kept() -> None:
    def handler(asked: Asked) -> Reply | None:
        reply = good(asked)
        assert reply is not None
        reply.headers["Set-Cookie"] = "track=me"
        return reply

    async with serving(handler) as server, client() as registry:
        await registry.get_manifest(ref(server))
        await registry.get_manifest(ref(server))
        assert "cookie" not in server.asked[1].headers


async def test_a_client_is_used_in_its_block() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await client().get_manifest(Reference.parse("x"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts yet, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 -addext"
    subprocess.run(
        ["openssl", *words.split(), "subjectAltName=IP:127.0.0.1", "-keyout", "server.key", "-out", "ca.crt"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


def server_context(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "ca.crt", authority / "server.key")
    return context


def trusting(tmp_path: Path, authority: Path, host: str) -> Path:
    (tmp_path / host).mkdir()
    (tmp_path / host / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    return tmp_path


async def test_tls_with_an_authority_of_certs_d(tmp_path: Path, authority: Path) -> None:
    async with serving(good, context=server_context(authority)) as server:
        sleeps = Sleeps()
        async with client(sleeps=sleeps) as registry:
            with pytest.raises(RegistryError, match="certificate is not trusted") as caught:
                await registry.get_manifest(ref(server))
            assert sleeps == [], "that plain http got no answer from a server of TLS will not pass"
            assert caught.value.hint is not None
            assert f"certs.d/{server.host}/ca.crt" in caught.value.hint
        async with client(certificates=trusting(tmp_path, authority, server.host)) as registry:
            for _ in range(2):
                async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                    assert await received(stream) == BLOB
            assert len({asked.connection for asked in server.asked}) == 1


async def test_an_insecure_registry_is_not_verified(authority: Path) -> None:
    async with serving(good, context=server_context(authority)) as server:
        hosts = Hosts(registries=(Registry(prefix=server.host, location=server.host, insecure=True),))
        async with client(hosts=hosts) as registry:
            assert (await registry.get_manifest(ref(server))).body == MANIFEST


async def test_a_client_certificate(tmp_path: Path, authority: Path) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority / "ca.crt")
    async with serving(good, context=context) as server:
        folder = trusting(tmp_path, authority, server.host)
        async with client(certificates=folder, retries=0) as registry:
            with pytest.raises(RegistryError):
                await registry.get_manifest(ref(server))
        (folder / server.host / "client.cert").write_bytes((authority / "ca.crt").read_bytes())
        (folder / server.host / "client.key").write_bytes((authority / "server.key").read_bytes())
        async with client(certificates=folder) as registry:
            assert (await registry.get_manifest(ref(server))).body == MANIFEST


async def test_https_does_not_become_http(tmp_path: Path, authority: Path) -> None:
    async with serving(ranged) as plain, serving(good, context=server_context(authority)) as server:
        server.handler = lambda _: Reply(302, {"Location": f"{plain.url}/x"})
        async with client(certificates=trusting(tmp_path, authority, server.host)) as registry:
            with pytest.raises(RegistryError, match="redirect from https to http is not followed"):
                async with registry.open_blob(ref(server), sha256(BLOB)):
                    pass
        assert plain.asked == []
        hosts = Hosts(registries=(Registry(prefix=server.host, location=server.host, insecure=True),))
        async with client(hosts=hosts) as registry, registry.open_blob(ref(server), sha256(BLOB)) as stream:
            assert await received(stream) == BLOB


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the registry, which has not been asked: the hint says so."""
    async with serving(good) as gone, serving(good) as server:
        pass
    monkeypatch.setenv("https_proxy", gone.url)
    async with client(retries=0) as registry:
        with pytest.raises(RegistryError, match=r"reg\.invalid: ") as caught:
            await registry.get_manifest(Reference.parse("reg.invalid/a/b:1"))
        assert caught.value.hint == "HTTP_PROXY, HTTPS_PROXY and NO_PROXY are in effect"
        with pytest.raises(RegistryError) as caught:
            await registry.get_manifest(ref(server))
        assert caught.value.hint is None


async def test_a_proxy_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(good) as proxy, serving(good) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        hosts = Hosts(registries=(Registry(prefix="reg.invalid", location="reg.invalid", insecure=True),))
        async with client(hosts=hosts, retries=0) as registry:
            await registry.get_manifest(ref(server))
            assert proxy.asked == []
            proxy.handler = lambda asked: good(
                Asked("GET", asked.target.removeprefix("http://reg.invalid"), asked.headers, b"", 0)
            )
            assert (await registry.get_manifest(Reference.parse("reg.invalid/a/b:1"))).body == MANIFEST
            assert proxy.paths == ["http://reg.invalid/v2/a/b/manifests/1"]
            async with registry.open_blob(Reference.parse("reg.invalid/a/b:1"), sha256(BLOB)) as stream:
                async for chunk in stream.chunks():
                    assert chunk
                    break
