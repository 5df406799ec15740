"""A real database server for tests, as a pytest fixture: started in a container, ready when the tests see it.

The server gets no network. It listens on a unix socket in a folder that it shares with the tests, and says itself when
it is ready: nobody polls a port, and no test starts a moment too early.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import crungo

IMAGE = os.environ.get("DATABASE_IMAGE", "docker.io/library/redis:7")
READY = b"ready to accept connections"
USER = 999


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One server for all tests of a backend: what a session-wide asynchronous fixture needs."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
async def database(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """The socket of a running server, which is gone with the last test, whatever becomes of the tests."""
    folder = tmp_path_factory.mktemp("database")
    os.chown(folder, USER, USER)
    command = ["redis-server", "--port", "0", "--unixsocket", "/run/database/socket", "--unixsocketperm", "777"]
    async with (
        crungo.Engine() as engine,
        engine.container(
            IMAGE,
            command,
            entrypoint="",
            user=USER,
            memory="256m",
            tmpfs=[f"/data:uid={USER},mode=700"],
            workdir="/data",
            volumes=[f"{folder}:/run/database"],
        ) as server,
        anyio.create_task_group() as group,
    ):
        await group.start(_watch, server)
        yield folder / "socket"
        await server.stop()  # it writes what it has; leaving the block alone would kill it
        group.cancel_scope.cancel()


async def _watch(server: crungo.Container, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Wait for the word of the server that it is ready; then go on reading, or it would block on a full pipe."""
    log = b""
    ready = False
    async for piece in server.output():
        if ready:
            continue
        log += piece.data
        if READY in log.lower():
            ready = True
            task_status.started()
    if not ready:
        raise RuntimeError(f"the database ended with {await server.wait()}:\n{log.decode(errors='replace')}")
