"""Task groups that fail with the failure itself."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["single_failure"]


@contextmanager
def single_failure() -> Iterator[None]:
    """Raise the first failure out of the exception group that a task group makes of it.

    The tasks of a group do parts of one thing: when one fails, the others are cancelled, and the caller wants to know
    what failed, as if there had been one task. A group of nothing but cancellations stays what it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled = anyio.get_cancelled_exc_class()
        rest: BaseExceptionGroup | None = group.split(cancelled)[1]
        if rest is None:
            raise
        failure: BaseException = rest
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from failure.__cause__
