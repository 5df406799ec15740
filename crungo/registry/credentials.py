"""Credentials as docker and podman file them: the format of ``auth.json`` and ``config.json``. Pure.

A file maps keys to secrets: ``host[:port]``, ``host[:port]/namespace``, ``host[:port]/namespace/repository``;
docker's own registry is filed under ``https://index.docker.io/v1/``. The most specific key wins. ``credHelpers`` and
``credsStore`` name programs that keep the secrets instead (containers-auth.json(5), docker's "Credential stores").

Invariant: secrets never appear in a ``repr`` or in a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any

from crungo.errors import ConfigurationError
from crungo.records import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AuthFile", "Credential", "helper_name", "lookup_keys", "parse_auth_file", "server_key"]

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TOKEN_USER = "<token>"  # noqa: S105 - the user name by which helpers mark a secret as an identity token


class Credential(Record):
    """What proves who we are: a user name and password, an identity (refresh) token, or a ready bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.password or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of an ``Authorization`` header of the Basic scheme (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class AuthFile(Record):
    """One file, read. ``document`` is all of it, so that what is not understood survives being written back."""

    document: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def find(self, keys: tuple[str, ...]) -> Credential | None:
        """The credential filed under the first of ``keys`` (from ``lookup_keys``) that has one.

        Raises:
            ConfigurationError: the entry is malformed.
        """
        entries = {server_key(key): entry for key, entry in self._table("auths").items()}
        for key in keys:
            credential = _credential(entries.get(key), f"{self.source}: {key}")
            if credential:
                return credential
        return None

    def helper(self, keys: tuple[str, ...]) -> str | None:
        """The helper that ``credHelpers`` names for the first of ``keys``, else the one of ``credsStore``.

        An empty name means none, for those for whom ``credsStore`` is not.
        """
        helpers = {server_key(key): name for key, name in self._table("credHelpers").items()}
        chosen = next((helpers[key] for key in keys if key in helpers), self.document.get("credsStore"))
        return helper_name(chosen, self.source) if chosen else None

    def with_credential(self, key: str, credential: Credential | None) -> dict[str, Any]:
        """The document with the entry of ``key`` replaced, or removed for None; everything else as it was."""
        document = dict(self.document)
        auths = {name: entry for name, entry in self._table("auths").items() if server_key(name) != server_key(key)}
        if credential is not None:
            auths[key] = _entry(credential)
        document["auths"] = auths
        return document

    def holds(self, key: str) -> bool:
        """Whether there is an entry of ``key``, be it an empty one."""
        return any(server_key(name) == server_key(key) for name in self._table("auths"))

    def _table(self, name: str) -> dict[str, Any]:
        table = self.document.get(name)
        if table is None:
            return {}
        if not isinstance(table, dict):
            raise ConfigurationError(f"{self.source}: {name}: must be an object")
        return table


def parse_auth_file(text: str, *, source: str) -> AuthFile:
    """Read a file's content; an empty text is an empty file.

    Raises:
        ConfigurationError: the text is no JSON object; the message names ``source`` and quotes nothing of the text.
    """
    try:
        document = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{source}: not valid JSON") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: must be a JSON object")
    return AuthFile(document=document, source=source)


def server_key(key: str) -> str:
    """A key in the one form used for comparing: no scheme, no path of an API, docker's registry as ``docker.io``."""
    scheme, separator, rest = key.partition("://")
    if separator:  # legacy keys are URLs of which only the host says something
        key = rest.partition("/")[0] if scheme.lower() in ("http", "https") else key
    key = key.rstrip("/")
    host, slash, path = key.partition("/")
    return ("docker.io" if host in _DOCKER_HUB_NAMES else host) + slash + path


def lookup_keys(registry: str, repository: str = "") -> tuple[str, ...]:
    """The keys under which credentials for a repository may be filed, the most specific first."""
    parts = [server_key(registry), *(repository.split("/") if repository else [])]
    return tuple("/".join(parts[:length]) for length in range(len(parts), 0, -1))


def storage_key(registry: str) -> str:
    """The key under which new credentials for ``host[:port]`` are filed, and what helpers are asked for."""
    key = server_key(registry)
    return DOCKER_HUB_KEY if key == "docker.io" else key


def helper_name(name: object, source: str) -> str:
    """A helper's name, checked: it becomes part of a program's name.

    Raises:
        ConfigurationError: it is not made of letters, digits, ``.``, ``_`` and ``-``.
    """
    if not isinstance(name, str) or not re.fullmatch(_HELPER, name):
        raise ConfigurationError(f"{source}: malformed name of a credential helper")
    return name


def _credential(entry: object, where: str) -> Credential | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key, ""), str) for key in ("auth", "identitytoken")):
        raise ConfigurationError(f"{where}: malformed entry")
    texts = {key: value for key, value in entry.items() if isinstance(value, str)}
    username, password = texts.get("username", ""), texts.get("password", "")
    if texts.get("auth"):
        username, password = _decoded(texts["auth"], where)
    return Credential(
        username=username,
        password=password,
        identity_token=texts.get("identitytoken", ""),
        registry_token=texts.get("registrytoken", ""),
    )


def _decoded(auth: str, where: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise ConfigurationError(f"{where}: auth is not base64") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise ConfigurationError(f"{where}: auth has no colon between user and password")
    return username, password.rstrip("\0")  # old docker clients padded with zeros


def _entry(credential: Credential) -> dict[str, str]:
    if credential.identity_token:
        auth = base64.b64encode(f"{credential.username}:".encode()).decode()
        return {"auth": auth, "identitytoken": credential.identity_token}
    return {"auth": base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()}
