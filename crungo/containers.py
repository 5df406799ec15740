"""A running container: the process that it was made for, and what can be done to the container as a whole.

A :class:`Container` lives as long as the block that :meth:`crungo.Engine.container` opened; leaving the block, for
whatever reason, ends it with all that runs inside.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from crungo.config import ExecConfig
from crungo.process import Completed, Process, Stdio, run_to_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from anyio import CapacityLimiter

    from crungo.runtime.requests import Channel

__all__ = ["Container"]


class Container(Process):
    """A running container; :attr:`id` is its 64 hex digits."""

    def __init__(
        self,
        identifier: str,
        channel: Channel,
        stdio: Stdio,
        limiter: CapacityLimiter,
        command: str,
        *,
        execute: Callable[[ExecConfig], Awaitable[Process]],
    ) -> None:
        super().__init__(channel, stdio, limiter, command)
        self.id = identifier
        self._execute = execute

    @asynccontextmanager
    async def exec(self, command: Sequence[str], **fields: Any) -> AsyncIterator[Process]:
        """A further process in this container, for as long as the block lasts; ``fields`` are those of ExecConfig.

        Leaving the block ends it and all that it started, and nothing else.
        """
        process = await self._execute(ExecConfig(command=tuple(command), **fields))
        try:
            yield process
        finally:
            await process.aclose()

    async def run(
        self,
        command: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's word
        timeout: float | None = None,
        check: bool = False,
        **fields: Any,
    ) -> Completed:
        """Run a further process to its end and capture what it writes; arguments as for :meth:`crungo.Engine.run`."""
        process = self.exec(command, stdin=input is not None, **fields)
        return await run_to_end(process, input=input, timeout=timeout, check=check)
