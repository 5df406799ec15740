"""A registry for faults that a real one does not produce: threads, plain HTTP on loopback, and a hook per answer."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.httpserver import HttpServer
from tests.support.image import Image, sha256

__all__ = ["FakeRegistry", "Fault", "Request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked: ``path`` below ``/v2/``, ``range`` as (start, end) with an exclusive end."""

    method: str
    path: str
    range: tuple[int, int | None] | None
    number: int  # how many requests for this path came before


@dataclass(slots=True, kw_only=True)
class Fault:
    """What to do wrong with an answer; ``after`` counts bytes of the body that is sent."""

    status: int | None = None  # answer this instead
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None  # stop here …
    reset: bool = False  # … with a reset instead of an orderly end
    hold: threading.Event | None = None  # … or by waiting for this, then going on
    corrupt: int | None = None  # flip the bits of this byte of the blob
    ignore_range: bool = False
    chunked: bool = False  # do not say how much will come
    body: bytes | None = None  # send this instead
    pause: float = 0.0  # seconds per 64 KiB


@dataclass(slots=True)
class Sent:
    request: Request
    status: int
    bytes: int = 0


class FakeRegistry(HttpServer):
    """``faults`` is asked for each request; ``sent`` says what was answered."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}  # repository/manifests/tag-or-digest
        self.sent: list[Sent] = []
        self.faults: Callable[[Request], Fault | None] = lambda _: None
        self.head = True
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, image: Image, name: str = "image", tag: str = "latest") -> str:
        """Serve an image; the reference."""
        self.blobs.update(image.blobs)
        self.put(name, tag, image.media_type, image.manifest)
        return f"{self.address}/{name}:{tag}"

    def put(self, name: str, tag: str, media_type: str, body: bytes) -> str:
        """Serve a manifest under a tag and its digest; the digest."""
        digest = sha256(body)
        for key in (tag, digest):
            self.manifests[f"{name}/manifests/{key}"] = (media_type, body)
        return digest

    def bytes_of(self, digest: str) -> int:
        """How many bytes of a blob were sent."""
        return sum(sent.bytes for sent in self.sent if sent.request.path.endswith(digest))

    def requests(self, part: str) -> list[Sent]:
        """Answers to requests whose method and path contain this."""
        return [sent for sent in self.sent if part in f"{sent.request.method} {sent.request.path}"]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.removeprefix("/v2/")
        key = (handler.command, path)
        number = self._counts[key] = self._counts.get(key, -1) + 1
        request = Request(method=handler.command, path=path, range=_range(handler.headers.get("Range")), number=number)
        fault = self.faults(request) or Fault()
        body, headers = self._find(path)
        if fault.body is not None:
            body = fault.body
        status = 200 if body is not None else 404
        if fault.status is not None or (handler.command == "HEAD" and not self.head):
            status, body = fault.status or 405, None
        if body is None:
            body, headers = json.dumps({"errors": [{"code": "FAKE", "message": "no"}]}).encode(), {}
        elif request.range is not None and not fault.ignore_range:
            start, end = request.range
            total, end = len(body), min(len(body), end or len(body))
            if start >= total:
                status, body = 416, b""
                headers["Content-Range"] = f"bytes */{total}"
            else:
                status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{total}"
                if fault.corrupt is not None and start <= fault.corrupt < end:
                    body = _flipped(body, fault.corrupt)
                body = body[start:end]
        elif fault.corrupt is not None:
            body = _flipped(body, fault.corrupt)
        sent = Sent(request, status)
        self.sent.append(sent)
        handler.send_response(status)
        for name, value in {**headers, **fault.headers}.items():
            handler.send_header(name, value)
        if fault.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            _send(handler, body, fault, sent)

    def _find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        if path in self.manifests:
            media_type, body = self.manifests[path]
            return body, {"Content-Type": media_type, "Docker-Content-Digest": sha256(body)}
        body_or_none = self.blobs.get(path.rpartition("/")[2])
        return body_or_none, {"Content-Type": "application/octet-stream"}


def _send(handler: BaseHTTPRequestHandler, body: bytes, fault: Fault, sent: Sent) -> None:
    position = 0
    while position < len(body):
        step = 65536
        if fault.after is not None and position < fault.after:
            step = min(step, fault.after - position)
        piece = body[position : position + step]
        if fault.chunked:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        else:
            handler.wfile.write(piece)
        position += len(piece)
        sent.bytes += len(piece)
        if fault.pause:
            time.sleep(fault.pause)
        if position == fault.after:
            if fault.hold is not None:
                fault.hold.wait(30)
                continue
            if fault.reset:
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            return
    if fault.chunked:
        handler.wfile.write(b"0\r\n\r\n")


def _range(header: str | None) -> tuple[int, int | None] | None:
    if header is None:
        return None
    start, _, last = header.removeprefix("bytes=").partition("-")
    return int(start), int(last) + 1 if last else None


def _flipped(body: bytes, position: int) -> bytes:
    return body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]
