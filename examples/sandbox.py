"""A web service that runs submitted code: each piece in a container of its own, limited, with a deadline.

    crungo and its example dependencies, then:  uvicorn examples.sandbox:app
    curl -N --data 'import time; [print(i, flush=True) or time.sleep(1) for i in range(3)]' localhost:8000/run

The answer is a stream of JSON lines, written as the program writes: ``{"stream": "stdout", "data": "…"}``, and at the
end ``{"exit": 0}`` or ``{"error": "…"}``. Who hangs up ends the program: leaving the block does.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import crungo

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LARGEST_CODE = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What code runs in, and how far it may go. Times are in seconds, ``output`` in bytes."""

    image: str = field(default_factory=lambda: os.environ.get("SANDBOX_IMAGE", "docker.io/library/python:3-alpine"))
    command: tuple[str, ...] = ("python3", "-c")
    deadline: float = 10.0
    output: int = 1 << 20
    ready: int = 2
    """Containers that wait for code, so that a request does not wait for a container."""


class Sandbox:
    """The endpoint. No network, no capability, nothing writable but a small /tmp, and a user that owns nothing."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool: crungo.Pool | None = None

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with (
            crungo.Engine() as engine,
            engine.pool(
                self.settings.image,
                self.settings.ready,
                user="65534:65534",
                memory="128m",
                cpus=0.5,
                pids_limit=64,
                read_only=True,
                tmpfs=["/tmp:size=16m"],
                cap_drop=["ALL"],
                no_new_privileges=True,
            ) as self._pool,
        ):
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            code = await _body(request)
        except ClientDisconnect:
            return
        if not code:
            response = PlainTextResponse(f"expected up to {LARGEST_CODE} bytes of code\n", status_code=422)
            await response(scope, receive, send)
            return
        async with anyio.create_task_group() as group:
            group.start_soon(_when_gone, receive, group.cancel_scope)
            await self._answer(code, send)
            group.cancel_scope.cancel()

    async def _answer(self, code: str, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(**line: object) -> None:
            body = json.dumps(line).encode() + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            with anyio.fail_after(self.settings.deadline):
                await say(**await self._run(code, say))
        except TimeoutError:
            await say(error=f"stopped after {self.settings.deadline:g} seconds")
        except crungo.CrungoError as error:
            await say(error=str(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self, code: str, say: Say) -> dict[str, object]:
        """Run the code, and tell what it writes; returns the last line."""
        assert self._pool is not None
        left = self.settings.output
        async with self._pool.container([*self.settings.command, code]) as container:
            async for piece in container.output(max_bytes=64 << 10):
                await say(stream=piece.stream, data=piece.data[:left].decode(errors="replace"))
                left -= len(piece.data)
                if left < 0:
                    return {"error": f"stopped after {self.settings.output} bytes of output"}
            return {"exit": await container.wait()}


if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Protocol

    class Say(Protocol):
        def __call__(self, **line: object) -> Awaitable[None]: ...


async def _body(request: Request) -> str:
    """The code; empty when there is none, too much, or something else than text."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        parts.append(part)
        if size > LARGEST_CODE:
            return ""
    text = b"".join(parts).decode(errors="replace")
    return "" if "\0" in text else text


async def _when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the answer when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def create_app(settings: Settings | None = None) -> Starlette:
    """The application, with settings of its own."""
    sandbox = Sandbox(settings or Settings())
    return Starlette(routes=[Route("/run", sandbox, methods=["POST"])], lifespan=sandbox.lifespan)


app = create_app()
