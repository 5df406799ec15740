"""One answer of a registry: its head, and its body as it comes.

Invariant: after ``aclose`` the connection is either back in the pool or closed, and no generator below is left
suspended (trio complains of such, and asyncio finishes them at a moment of its own choosing).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import httpcore

from crungo.errors import RegistryError
from crungo.registry.failures import unreachable
from crungo.registry.transport import FAILURES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crungo.registry.transport import Response
    from crungo.registry.urls import Url

__all__ = ["Answer"]

_WORTH_READING = 64 << 10  # bytes of an unwanted body: cheaper to read than a new connection is to make
_WORTH_WAITING = 1.0  # seconds, likewise


class Answer:
    """What a transport gave for ``what``, asked of ``url``; ``whole`` is how many seconds a small body may take.

    ``bodiless``: it answers a HEAD. ``foreign``: a redirect led to another origin, which speaks for itself and not for
    the registry.
    """

    def __init__(self, response: Response, what: str, url: Url, whole: float, *, bodiless: bool, foreign: bool) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = str(url)
        self.host = url.netloc
        self.foreign = foreign
        self._response = response
        self._bodiless = bodiless or self.status in (204, 304)
        self._what = what
        self._whole = whole
        self._body: AsyncIterator[bytes] | None = None
        self._ended = False

    @property
    def length(self) -> int | None:
        """The ``Content-Length``, where there is one."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    async def next(self) -> bytes:
        """The next piece of the body, at most some hundred KiB; empty at its end.

        Raises:
            RegistryError: the body was cut short, or nothing came for ``Timeouts.stall`` seconds.
        """
        if self._ended:
            return b""
        if self._body is None:
            self._body = aiter(self._response.body)
        try:
            while True:
                chunk = await anext(self._body)
                if chunk:
                    return chunk
        except StopAsyncIteration:
            self._ended = True
            return b""
        except FAILURES as error:
            self._ended = True
            raise unreachable(self._what, self.host, error) from error
        except BaseException:  # cancelled: the exception has ended every generator below
            self._ended = True
            raise

    async def read(self, *, limit: int) -> bytes:
        """The whole body, in at most ``Timeouts.whole`` seconds.

        Raises:
            RegistryError: it is longer than ``limit`` bytes, is cut short, or takes too long.
        """
        body = bytearray()
        too_long = f"{self._what}: {self.host}: the answer is longer than {limit} bytes"
        if (self.length or 0) > limit:
            raise RegistryError(too_long)
        try:
            with anyio.fail_after(self._whole):
                while chunk := await self.next():
                    body += chunk
                    if len(body) > limit:
                        raise RegistryError(too_long)
        except TimeoutError:
            slow = httpcore.ReadTimeout(f"no whole answer within {self._whole:g} seconds")
            raise unreachable(self._what, self.host, slow) from slow
        return bytes(body)

    async def finish(self) -> None:
        """All that is wanted has been read: see the end of the body, too, if it is here, for the connection's sake."""
        if not self._ended and self._body is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_WORTH_WAITING), suppress(RegistryError):
                await self.next()

    async def aclose(self) -> None:
        """Release the connection. A short rest of the body is read, so that the connection can be used again."""
        with anyio.CancelScope(shield=True):
            if not self._ended and self._body is None and self._is_short():
                with anyio.move_on_after(_WORTH_WAITING), suppress(RegistryError):
                    await self.read(limit=_WORTH_READING)
            if not self._ended and self._body is not None:
                await self._abandon()
            with suppress(*FAILURES):
                await self._response.aclose()

    def _is_short(self) -> bool:
        return self._bodiless or (self.length is not None and self.length <= _WORTH_READING)

    async def _abandon(self) -> None:
        """End a body in its middle: with the connection gone, every generator below ends by its exception."""
        self._ended = True
        assert self._body is not None
        await self._response.connection.aclose()
        with suppress(StopAsyncIteration, *FAILURES):
            while True:  # what has been received already still comes, at most one read's worth
                await anext(self._body)
