"""The client against a registry of its own on loopback: manifests, blobs, tags."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import anyio
import anyio.abc
import httpx
import pytest

from crungo.errors import DigestMismatch, ImageError, ImageNotFound, RegistryError
from crungo.image.reference import Reference
from crungo.registry.client import LARGEST_MANIFEST, FetchedManifest, ManifestHead
from crungo.registry.retry import is_transient
from tests.support.scripted import (
    BLOB,
    KIND,
    MANIFEST,
    Asked,
    Reply,
    client,
    collect,
    good,
    ranged,
    received,
    ref,
    serving,
    sha256,
)

pytestmark = pytest.mark.anyio


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


async def test_a_whole_blob_and_the_connection_again() -> None:
    async with serving(good) as server, client() as registry:
        for _ in range(2):
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert (stream.start, stream.end, stream.total, stream.ranged) == (0, len(BLOB), len(BLOB), True)
                assert await received(stream) == BLOB
        assert "range" not in server.asked[0].headers
        assert [asked.connection for asked in server.asked] == [1, 1]


async def test_blobs_are_streams_of_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the connections of everything else, which httpx has no part in."""
    streams: list[str] = []
    send = httpx.AsyncClient.send

    async def noting(self: httpx.AsyncClient, request: httpx.Request, *, stream: bool) -> httpx.Response:
        assert stream
        streams.append(request.url.path)
        return await send(self, request, stream=True)

    monkeypatch.setattr(httpx.AsyncClient, "send", noting)
    blob = f"/v2/a/b/blobs/{sha256(BLOB)}"
    async with serving(good) as server, client() as registry:
        await registry.get_manifest(ref(server))
        for start in (0, 5):
            async with registry.open_blob(ref(server), sha256(BLOB), start=start) as stream:
                assert await received(stream) == BLOB[start:]
        await registry.head_manifest(ref(server))
        assert streams == [blob, blob]
        assert server.paths == ["/v2/a/b/manifests/1", blob, blob, "/v2/a/b/manifests/1"]
        assert {asked.connection for asked in server.asked} == {1}


async def test_httpx_makes_nothing_of_what_comes_with_a_blob() -> None:
    def handler(asked: Asked) -> Reply:
        reply = ranged(asked)
        reply.headers.update({"Content-Encoding": "gzip", "Location": "http://[", "Set-Cookie": "track=me"})
        return reply

    async with serving(handler) as server, client() as registry:
        for _ in range(2):
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert await received(stream) == BLOB
        assert server.asked[0].headers == {
            "host": server.host,
            "user-agent": "crungo",
            "accept": "*/*",
            "accept-encoding": "identity",
        }
        assert server.asked[1].headers == server.asked[0].headers
        server.handler = lambda _: Reply(302, {"Location": "http://a:b"})
        with pytest.raises(RegistryError, match="malformed redirect"):
            async with registry.open_blob(ref(server), sha256(BLOB)):
                pass


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


async def test_an_answer_may_be_longer_in_coming_than_its_next_byte() -> None:
    """A cache begins to answer when it has fetched what it was asked for."""

    def late(asked: Asked) -> Reply:
        reply = good(asked)
        assert reply is not None
        return replace(reply, late=0.4)

    async with serving(late) as server:
        async with client(stall=0.1) as registry:
            assert (await registry.get_manifest(ref(server))).body == MANIFEST
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert await received(stream) == BLOB
        async with client(head=0.1, retries=0) as registry:
            with pytest.raises(RegistryError, match=r"no answer within 0\.1 seconds$") as caught:
                await registry.get_manifest(ref(server))
            assert is_transient(caught.value)


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


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (json.dumps({"tags": [f"{n}" for n in range(100_001)]}).encode(), "there are more than 100000$"),
        (b'{"tags": [' + b"[]," * 5_000_000 + b"[]]}", "its list of tags is malformed$"),
    ],
    ids=["tags", "parts"],
)
async def test_one_page_of_very_many(page: bytes, message: str) -> None:
    """A page may be as large as a list is; what is made of it takes thirty times as much, and pulling it for ever."""
    async with serving(lambda _: Reply(200, {}, page)) as server, client() as registry:
        tracemalloc.start()
        try:
            with pytest.raises(RegistryError, match=message):
                await registry.tags(ref(server))
            assert tracemalloc.get_traced_memory()[1] < 150 << 20
        finally:
            tracemalloc.stop()


async def test_a_client_is_used_in_its_block() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await client().get_manifest(Reference.parse("x"))
