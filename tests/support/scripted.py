"""A registry on loopback, in the test's own loop, whose every answer is the test's; and clients of it."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener

from crungo.image.reference import Reference
from crungo.registry.authfiles import Credentials
from crungo.registry.client import BlobStream, RegistryClient
from crungo.registry.credentials import Credential
from crungo.registry.hosts import Hosts
from crungo.registry.retry import Backoff, RetryPolicy
from crungo.registry.wire import Timeouts

__all__ = [
    "Asked",
    "BLOB",
    "Handler",
    "KIND",
    "Known",
    "MANIFEST",
    "Reply",
    "Server",
    "Sleeps",
    "USER",
    "client",
    "collect",
    "good",
    "ranged",
    "received",
    "ref",
    "serving",
    "sha256",
]

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
    late: float = 0.0  # seconds before anything is sent
    pause: float = 0.0  # seconds before the second half of the body
    endless: bytes = b""  # sent after `raw`, again and again


Handler = Callable[[Asked], Reply | None]


class Server:
    """An HTTP/1.1 server of two dozen lines; ``handler`` answers, and None from it is a 404."""

    def __init__(self, handler: Handler, port: int, scheme: str) -> None:
        self.handler = handler
        self.asked: list[Asked] = []
        self.host = f"127.0.0.1:{port}"
        self.url = f"{scheme}://{self.host}"
        self.connections = 0

    @property
    def paths(self) -> list[str]:
        return [asked.target for asked in self.asked]

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        self.connections += 1
        number = self.connections
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
        if reply.late:
            await anyio.sleep(reply.late)
        if reply.raw is not None:
            await stream.send(reply.raw)
            while reply.endless:
                await stream.send(reply.endless)
                await anyio.sleep(0.01)
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
    head: float = 5.0,
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
        timeouts=Timeouts(connect=connect, head=head, stall=stall, whole=10.0),
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
