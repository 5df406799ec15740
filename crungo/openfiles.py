"""The limits of open files and of threads, as one clear error each wherever they are met."""

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
_NO_THREAD = "can't start new thread"  # all that the interpreter tells


@contextmanager
def naming_the_limit(what: str) -> Iterator[None]:
    """Within the block, an error that says that no more files can be opened, or no more threads started, becomes one
    that says which limit it is.

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
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        raise HostError(
            f"{what}: no more threads can be started",
            hint="raise the limit: pids.max of its cgroup, TasksMax= of its service, or ulimit -u and -v",
        ) from error
