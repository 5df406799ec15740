"""The credentials of this user: the files of docker and podman and the helpers that they name; login and logout.

Read in this order: ``$REGISTRY_AUTH_FILE`` alone, where it is set; else ``$XDG_RUNTIME_DIR/containers/auth.json``,
``~/.config/containers/auth.json`` and ``$DOCKER_CONFIG/config.json`` (``~/.docker``).

Invariant: a file is replaced whole by a rename, is readable by its owner alone, who stays the same, and keeps the keys
that are not ours.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio.to_thread

from crungo.errors import ConfigurationError
from crungo.registry import helpers
from crungo.registry.credentials import AuthFile, Credential, lookup_keys, parse_auth_file, storage_key

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Credentials", "auth_files"]


def auth_files(environ: Mapping[str, str] = os.environ, *, uid: int | None = None) -> tuple[str, ...]:
    """The files to read, in order; the first is the one that a login is written to."""
    explicit = environ.get("REGISTRY_AUTH_FILE")
    if explicit:
        return (explicit,)
    home = environ.get("HOME") or "/"
    runtime = environ.get("XDG_RUNTIME_DIR")
    runtime = f"{runtime}/containers" if runtime else f"/run/containers/{os.geteuid() if uid is None else uid}"
    return (
        f"{runtime}/auth.json",
        os.path.join(environ.get("XDG_CONFIG_HOME") or f"{home}/.config", "containers/auth.json"),
        os.path.join(environ.get("DOCKER_CONFIG") or f"{home}/.docker", "config.json"),
    )


class Credentials:
    """The user's credentials. ``paths`` are the files, as ``auth_files`` gives them, read when something is asked."""

    def __init__(self, paths: tuple[str, ...] | None = None) -> None:
        self._paths = auth_files() if paths is None else paths

    async def find(self, registry: str, repository: str = "") -> Credential | None:
        """The credential for a repository, from the first file that has one.

        In a file, a helper is asked before the file's own entries: where both know something, docker believes the
        helper.

        Raises:
            ConfigurationError: a file is malformed or cannot be read.
            AuthenticationError: a helper fails.
        """
        keys = lookup_keys(registry, repository)
        for file in await self._read_all():
            helper = file.helper(keys)
            credential = await helpers.get(helper, storage_key(registry)) if helper else None
            credential = credential or file.find(keys)
            if credential:
                return credential
        return None

    async def store(self, registry: str, credential: Credential) -> str:
        """File ``credential`` for ``host[:port]``; returns where: a path, or a helper's program name.

        It goes to the helper that is configured for the registry, else into the first file. What an earlier file
        says about the registry is removed, or it would hide the new credential.

        Raises:
            ConfigurationError: a file is malformed, or cannot be read or written.
            AuthenticationError: the helper fails.
        """
        key = storage_key(registry)
        for file in await self._read_all():
            helper = file.helper(lookup_keys(registry))
            if helper:
                await helpers.store(helper, key, credential)
                await anyio.to_thread.run_sync(self._remove, key)
                return f"docker-credential-{helper}"
        await anyio.to_thread.run_sync(_update, self._paths[0], key, credential)
        return self._paths[0]

    async def erase(self, registry: str) -> bool:
        """Remove what is filed for ``host[:port]`` from all files and helpers; False where nothing was.

        Raises:
            ConfigurationError: a file is malformed, or cannot be read or written.
            AuthenticationError: a helper fails.
        """
        key = storage_key(registry)
        found = False
        for file in await self._read_all():
            helper = file.helper(lookup_keys(registry))
            if helper and await helpers.erase(helper, key):
                found = True
        return await anyio.to_thread.run_sync(self._remove, key) or found

    async def _read_all(self) -> list[AuthFile]:
        return await anyio.to_thread.run_sync(lambda: [_read(path) for path in self._paths])

    def _remove(self, key: str) -> bool:
        holding = [path for path in self._paths if _read(path).holds(key)]
        for path in holding:
            _update(path, key, None)
        return bool(holding)


def _read(path: str) -> AuthFile:
    try:
        with open(path, encoding="utf-8") as stream:
            return parse_auth_file(stream.read(), source=path)
    except (FileNotFoundError, NotADirectoryError):
        return AuthFile(source=path)
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _update(path: str, key: str, credential: Credential | None) -> None:
    """Replace one entry of one file. Two logins at the same time both last: the folder is locked meanwhile."""
    path = os.path.realpath(path)  # a link made by the keeper of dot files stays a link
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _replace(path, json.dumps(_read(path).with_credential(key, credential), indent="\t") + "\n")
        finally:
            os.close(lock)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _replace(path: str, text: str) -> None:
    import tempfile  # 2 ms; pulls only read

    handle, temporary = tempfile.mkstemp(prefix=".auth-", dir=os.path.dirname(path))  # mode 0600 from the start
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            with suppress(FileNotFoundError, PermissionError):
                before = os.stat(path)
                os.fchown(handle, before.st_uid, before.st_gid)  # root may log in for somebody
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())  # the file also holds what others wrote: a crash must not leave it empty
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
