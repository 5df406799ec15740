"""``crungo.run`` and ``crungo.container``: one container, with an engine of its own for the one call; for scripts.

Whoever makes several containers enters an :class:`crungo.Engine` once and saves the start of its helper
process, some tens of milliseconds, for each of them.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from crungo.engine import Engine
from crungo.fields import configure as configured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Unpack

    from crungo.config import ContainerConfig
    from crungo.containers import Container
    from crungo.fields import ContainerFields
    from crungo.process import Completed

__all__ = ["configure", "container", "run"]


def configure(
    image: str | ContainerConfig, command: Sequence[str] | None = None, **fields: Unpack[ContainerFields]
) -> ContainerConfig:
    """A configuration, to be given to calls in place of an image: checked once, used as often as wanted.

    ``image`` may be a configuration itself, of which a changed copy is made.

    Raises:
        UsageError: an unknown keyword, or a value that is malformed or of a wrong type.
    """
    return configured(image, command, fields)


async def run(
    image: str | ContainerConfig,
    command: Sequence[str] | None = None,
    *,
    input: bytes | None = None,  # noqa: A002 - subprocess's word
    timeout: float | str | None = None,
    check: bool = False,
    **fields: Unpack[ContainerFields],
) -> Completed:
    """Run a container to its end and capture what it writes; see :meth:`crungo.Engine.run`."""
    async with Engine() as engine:
        return await engine.run(image, command, input=input, timeout=timeout, check=check, **fields)


@asynccontextmanager
async def container(
    image: str | ContainerConfig, command: Sequence[str] | None = None, **fields: Unpack[ContainerFields]
) -> AsyncIterator[Container]:
    """A running container, for as long as the block lasts; see :meth:`crungo.Engine.container`."""
    async with Engine() as engine, engine.container(image, command, **fields) as running:
        yield running
