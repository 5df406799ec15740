"""Tests that use the database: of an order book, kept in a real server."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

pytestmark = pytest.mark.anyio


class Client:
    """As much of the server's protocol (RESP2) as the tests need."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._buffered = BufferedByteReceiveStream(stream)

    async def __call__(self, *words: str) -> object:
        """Send a command; returns its answer: an int, a text, None, or a list."""
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        await self._stream.send(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return await self._answer()

    async def _answer(self) -> object:
        line = (await self._buffered.receive_until(b"\r\n", 1000)).decode()
        kind, rest = line[0], line[1:]
        if kind == "-":
            raise RuntimeError(rest)
        if kind == ":":
            return int(rest)
        if kind == "$":
            if rest == "-1":
                return None
            data = await self._buffered.receive_exactly(int(rest) + 2)
            return data[:-2].decode()
        if kind == "*":
            return [await self._answer() for _ in range(int(rest))]
        return rest


async def test_it_is_ready(database: Path) -> None:
    async with await anyio.connect_unix(database) as stream:
        assert await Client(stream)("PING") == "PONG"


async def test_orders_are_counted(database: Path) -> None:
    async with await anyio.connect_unix(database) as stream:
        redis = Client(stream)
        await redis("DEL", "orders")
        for number in range(100):
            await redis("RPUSH", "orders", f"order {number}")
        assert await redis("LLEN", "orders") == 100
        assert await redis("LRANGE", "orders", "0", "1") == ["order 0", "order 1"]


async def test_many_customers_at_once(database: Path) -> None:
    async def customer() -> None:
        async with await anyio.connect_unix(database) as stream:
            redis = Client(stream)
            for _ in range(20):
                await redis("INCR", "sold")

    async with await anyio.connect_unix(database) as stream:
        redis = Client(stream)
        await redis("SET", "sold", "0")
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(customer)
        assert await redis("GET", "sold") == "200"
