"""A proxy in front of a real registry that does wrong what registries and networks do wrong, and counts bytes.

Each request goes to the registry as it came; what comes back is passed on, unless the hook says otherwise. Threads,
plain HTTP, loopback. ``TokenServer`` makes a proxy ask for tokens, and lets them expire when a test wants it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from tests.support.httpserver import HttpServer

__all__ = ["Fault", "FaultProxy", "Request", "TokenServer"]

_PIECE = 16384
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked, and how many requests for this path came before it."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    number: int

    @property
    def blob(self) -> str:
        """The digest that was asked for; empty where it was no blob."""
        before, _, digest = self.path.partition("?")[0].rpartition("/")
        return digest if before.endswith("/blobs") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do wrong with an answer; ``after`` counts bytes of its body.

    ``status`` answers in the registry's place, with ``headers`` (also of a redirect). ``drop`` breaks the connection
    before anything is answered. ``reset`` and ``hold`` say how the body ends after ``after`` bytes: by a reset, or by
    silence until the event; else by an orderly end of the connection. ``corrupt`` is the byte whose bits are flipped.
    ``pause`` is in seconds for each 16 KiB.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    after: int | None = None
    reset: bool = False
    hold: threading.Event | None = None
    corrupt: int | None = None
    pause: float = 0.0


class TokenServer(HttpServer):
    """Hands out tokens that are good for ``uses`` requests, or until ``expire``; says ``expires_in`` seconds."""

    def __init__(self, *, uses: int | None = None, expires_in: int = 300) -> None:
        super().__init__(self._answer)
        self.issued = 0
        self.scopes: list[str] = []
        self._uses = uses
        self._expires_in = expires_in
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()

    def expire(self) -> None:
        """Make all tokens bad."""
        with self._lock:
            self._left.clear()

    def accepts(self, authorization: str) -> bool:
        """Whether a request with this header is let through; that counts as a use."""
        with self._lock:
            left = self._left.get(authorization.removeprefix("Bearer "), 0)
            if left:
                self._left[authorization.removeprefix("Bearer ")] = left - 1
            return left > 0

    @property
    def challenge(self) -> str:
        return f'Bearer realm="http://{self.address}/token",service="test",scope="repository:x:pull"'

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.issued += 1
            self.scopes += parse_qs(urlsplit(handler.path).query).get("scope", [])
            token = f"token-{self.issued}"
            self._left[token] = self._uses or 1 << 30
        body = json.dumps({"token": token, "expires_in": self._expires_in}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


class FaultProxy(HttpServer):
    """``faults`` is asked for each request; ``requests`` and ``sent`` (bytes of each blob) say what was answered."""

    def __init__(self, upstream: str, *, host: str = "127.0.0.1", tokens: TokenServer | None = None) -> None:
        super().__init__(self._answer, host=host)
        self.upstream = upstream
        self.tokens = tokens
        self.faults: Callable[[Request], Fault | None] = lambda _: None
        self.requests: list[Request] = []
        self.sent: dict[str, int] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Count anew."""
        with self._lock:
            # Not cleared: what is still being sent to those who turned away counts to the past.
            self.requests, self.sent, self._counts = [], {}, {}

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request, sent = self._note(handler)
        fault = self.faults(request) or Fault()
        if fault.drop:
            _reset(handler)
        elif self.tokens is not None and not self.tokens.accepts(request.headers.get("authorization", "")):
            _say(handler, 401, {"WWW-Authenticate": self.tokens.challenge})
        elif fault.status is not None:
            _say(handler, fault.status, fault.headers)
        else:
            self._pass_on(handler, request, fault, sent)

    def _note(self, handler: BaseHTTPRequestHandler) -> tuple[Request, dict[str, int]]:
        with self._lock:
            key = (handler.command, handler.path)
            number = self._counts[key] = self._counts.get(key, -1) + 1
            headers = {name.lower(): value for name, value in handler.headers.items()}
            request = Request(method=handler.command, path=handler.path, headers=headers, number=number)
            self.requests.append(request)
            return request, self.sent

    def _pass_on(self, handler: BaseHTTPRequestHandler, request: Request, fault: Fault, sent: dict[str, int]) -> None:
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        headers.pop("authorization", None)  # the registry behind asks for none
        upstream = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            upstream.request(request.method, request.path, headers=headers)
            answer = upstream.getresponse()
            handler.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    handler.send_header(name, value)
            handler.end_headers()
            if request.method != "HEAD":
                for length in _send(handler, answer, fault):
                    with self._lock:
                        sent[request.blob] = sent.get(request.blob, 0) + length
        finally:
            upstream.close()


def _send(handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, fault: Fault) -> Iterator[int]:
    """Send the body, and yield how much was sent each time."""
    position = 0
    while piece := answer.read(_PIECE if fault.after is None else min(_PIECE, fault.after - position)):
        if fault.corrupt is not None and position <= fault.corrupt < position + len(piece):
            at = fault.corrupt - position
            piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
        handler.wfile.write(piece)
        position += len(piece)
        yield len(piece)
        if fault.pause:
            time.sleep(fault.pause)
        if position == fault.after:
            break
    if position != fault.after:
        return
    if fault.hold is not None:
        fault.hold.wait(30)
    if fault.reset:
        _reset(handler)
    handler.close_connection = True


def _say(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    body = b"" if handler.command == "HEAD" else json.dumps({"errors": [{"code": "PROXY", "message": "no"}]}).encode()
    handler.send_response(status)
    for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    # A duplicate would keep the connection: rfile and wfile hold it until they are closed, too.
    handler.rfile.close()
    with contextlib.suppress(OSError):
        handler.connection.close()
