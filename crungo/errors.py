"""The error tree: every failure that crungo raises on purpose is one of these.

This module is a leaf: it imports nothing of crungo, so that every other module may raise from it.

    CrungoError                     the base; never raised itself
    ├── UsageError                  a value that the caller gave is malformed or contradicts another
    │   ├── InvalidReference        an image reference outside the grammar
    │   └── ConfigurationError      a file or variable that says how to reach registries is malformed
    ├── HostError                   the host lacks what is needed (root, a controller, room for open files)
    ├── RegistryError               a registry answered wrongly, refused, or could not be reached
    │   ├── AuthenticationError     credentials are missing or were refused
    │   └── ImageNotFound           the registry has no such repository, tag or digest
    ├── ImageError                  an image breaks the specification or is for another platform
    │   ├── DigestMismatch          content is not what its digest or size says
    │   └── LayerError              a layer archive is malformed, hostile or too large
    ├── StoreError                  the local store is damaged, locked or full
    │   ├── ImageNotKnown           no such image in the store
    │   └── ImageInUse              an image cannot be removed while something uses it
    ├── ContainerError              a container could not be made or used
    │   ├── NameInUse               the name belongs to another container
    │   ├── NoSuchContainer         no container has this name or id
    │   ├── NotRunning              the container has exited
    │   ├── FileError               a file of the container could not be read or written
    │   ├── CommandNotFound         its program does not exist                    (exit code 127)
    │   └── CommandNotExecutable    its program exists and cannot be executed     (exit code 126)
    ├── LibcrunError                libcrun refused: errno, its message, the operation
    ├── CommandFailed               run(check=True): the program ended with a code other than 0
    └── SpawnerDied                 the helper process is gone; nothing more can be asked of it

Each carries a message of one line, in the form ``<what failed>: <why>``, and may carry a hint: what
the reader can do about it. Only the command line prints them and turns them into exit codes.

Invariant: neither steers a terminal, whatever an image, a registry or a container has put into it, and whoever prints
it: a log, a traceback, an event loop that found the error in a task that nobody waited for.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "CommandFailed",
    "CommandNotExecutable",
    "CommandNotFound",
    "ConfigurationError",
    "ContainerError",
    "CrungoError",
    "DigestMismatch",
    "FileError",
    "HostError",
    "ImageError",
    "ImageInUse",
    "ImageNotFound",
    "ImageNotKnown",
    "InvalidReference",
    "LayerError",
    "LibcrunError",
    "NameInUse",
    "NoSuchContainer",
    "NotRunning",
    "RegistryError",
    "SpawnerDied",
    "StoreError",
    "UsageError",
    "printable",
]


def printable(text: str, *, keep: str = "") -> str:
    """Everything that cannot be printed is escaped, line ends too unless they are to be kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


class CrungoError(Exception):
    """The base of all errors that crungo raises on purpose.

    ``exit_code`` is what the command line ends with when this error ends a verb; 125 is docker's code
    for "the container program itself failed", as opposed to the command inside.
    """

    exit_code = 125

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class UsageError(CrungoError):
    """A value that the caller gave is malformed or contradicts another."""


class InvalidReference(UsageError):
    """An image reference outside the grammar of the distribution specification."""


class ConfigurationError(UsageError):
    """What is configured of registries, credentials, certificates or proxies is malformed; the message says where."""


class HostError(CrungoError):
    """The host lacks something that the operation needs."""


class RegistryError(CrungoError):
    """A registry answered wrongly, refused, or could not be reached.

    ``status`` is the HTTP status, where there was an answer at all; ``retry_after`` the seconds that the registry asks
    to be left alone for, where it said so; ``retried``: it has been asked as often as it is worth; ``answering``: the
    server has answered before.
    """

    def __init__(self, message: str, *, status: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after: float | None = None
        self.retried = False
        self.answering = False


class AuthenticationError(RegistryError):
    """Credentials are missing, or the registry refused them."""


class ImageNotFound(RegistryError):
    """The registry has no such repository, tag or digest."""


class ImageError(CrungoError):
    """An image breaks the specification, or there is none for the platform."""


class DigestMismatch(ImageError):
    """Content is not what its digest or its size says."""


class LayerError(ImageError):
    """A layer archive is malformed, tries to escape, or is larger than allowed."""


class StoreError(CrungoError):
    """The local store is damaged, locked, or out of space."""


class ImageNotKnown(StoreError):
    """No image of this name or id is in the store."""


class ImageInUse(StoreError):
    """An image cannot be removed while a container or another name uses it."""


class ContainerError(CrungoError):
    """A container could not be made or used."""


class NameInUse(ContainerError):
    """The name belongs to another container."""


class NoSuchContainer(ContainerError):
    """No container has this name or id."""


class NotRunning(ContainerError):
    """The container has exited, or was never started."""


class FileError(ContainerError):
    """A file of the container could not be read or written; ``errno`` is the system's number, 0 where it gave none."""

    def __init__(self, message: str, *, errno: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class CommandNotFound(ContainerError):
    """The program to run does not exist in the container."""

    exit_code = 127


class CommandNotExecutable(ContainerError):
    """The program to run exists in the container and cannot be executed."""

    exit_code = 126


class LibcrunError(CrungoError):
    """libcrun refused an operation.

    ``errno`` is the system's error number, 0 where libcrun gave none; ``operation`` names the libcrun
    call (``create``, ``start``, ``exec``, …); ``reason`` is libcrun's own message.
    """

    def __init__(self, operation: str, errno: int, reason: str) -> None:
        super().__init__(f"libcrun {operation}: {reason}")
        self.operation = operation
        self.errno = errno
        self.reason = reason


class CommandFailed(CrungoError):
    """The program of a run with ``check=True`` ended with a code other than 0.

    ``stdout`` and ``stderr`` are what it wrote, where they were captured.
    """

    def __init__(self, returncode: int, stdout: bytes | None = None, stderr: bytes | None = None) -> None:
        super().__init__(f"command ended with exit code {returncode}")
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class SpawnerDied(CrungoError):
    """The helper process that owns the containers is gone."""
