"""The standard streams of a process that is to be started: our ends, and those that it gets."""

from __future__ import annotations

import os

from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import ContainerConfig, ExecConfig

__all__ = ["Stdio", "standard_streams"]


class Stdio(Record, frozen=False):
    """Our ends of a process's standard streams, as descriptors; -1 where there is none.

    With a terminal, ``terminal`` is the PTY's master and the others are -1.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    terminal: int = -1

    def take(self, name: str) -> int:
        """Hand a descriptor over to the caller, who closes it from now on."""
        fd: int = getattr(self, name)
        setattr(self, name, -1)
        return fd

    def close(self) -> None:
        """Close what was not handed over."""
        for name in ("stdin", "stdout", "stderr", "terminal"):
            fd = self.take(name)
            if fd >= 0:
                os.close(fd)


def standard_streams(config: ContainerConfig | ExecConfig) -> tuple[Stdio, list[int]]:
    """Our ends and the process's: its 0, 1 and 2, which are the caller's to close."""
    ours = Stdio()
    theirs: list[int] = []
    try:
        if config.tty or not config.stdin:
            theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        else:
            reader, ours.stdin = os.pipe2(os.O_CLOEXEC)
            theirs.append(reader)
        for name in ("stdout", "stderr"):
            if config.tty:
                theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            else:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                setattr(ours, name, reader)
                theirs.append(writer)
    except BaseException:
        ours.close()
        for fd in theirs:
            os.close(fd)
        raise
    return ours, theirs
