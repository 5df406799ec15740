"""The limit of open files, as one clear error wherever it is met."""

from __future__ import annotations

import errno
import resource
from contextlib import contextmanager

from crungo.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LIMITS", "naming_the_limit"]

LIMITS = frozenset({errno.EMFILE, errno.ENFILE})
"""Of this process, and of the host."""


@contextmanager
def naming_the_limit(what: str) -> Iterator[None]:
    """Within the block, an OSError that says that no more files can be opened becomes one that says which limit it is.

    Raises:
        HostError: ``what`` failed for this.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise HostError(
                f"{what}: this process has as many files open as it may: {limit}",
                hint="raise the limit: ulimit -n, or LimitNOFILE= of its service",
            ) from error
        if error.errno == errno.ENFILE:
            raise HostError(
                f"{what}: the host has as many files open as it may", hint="raise the limit: sysctl fs.file-max"
            ) from error
        raise
