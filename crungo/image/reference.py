"""Image references: what a user writes for an image, made canonical. Pure.

The grammar is that of the distribution project's ``reference`` package, the normalisation docker's: ``alpine`` is
``docker.io/library/alpine:latest``; the first part is a registry when it holds a ``.`` or a ``:`` or is ``localhost``.

Invariant: every part of a ``Reference`` has been matched against the grammar, also when it was built field by field, so
that it may stand in a URL or (encoded) in a file name without further checks.
"""

from __future__ import annotations

import re

from crungo.errors import InvalidReference
from crungo.image.digest import digest_problem
from crungo.records import Record, replace

__all__ = ["DEFAULT_REGISTRY", "DEFAULT_TAG", "Reference", "check_registry", "lacks_registry"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_OFFICIAL = "library/"  # docker.io's own images are filed below it and written without it
_LEGACY_REGISTRY = "index.docker.io"
_LONGEST = 255

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID = re.compile(r"[0-9a-f]{64}")


class Reference(Record):
    """A canonical image reference.

    ``registry`` is a host with an optional port (``docker.io``, ``localhost:5000``); ``repository`` the path below it
    (``library/alpine``). At least one of ``tag`` and ``digest`` is set; where both are, the digest decides.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def _check(self) -> None:
        problem = (
            _registry_problem(self.registry)
            or _repository_problem(self.repository)
            or (_tag_problem(self.tag) if self.tag is not None else None)
            or (digest_problem(self.digest) if self.digest is not None else None)
        )
        if problem is None and self.tag is None and self.digest is None:
            problem = "neither a tag nor a digest"
        if problem is None and _split(self.name) != (self.registry, self.repository):
            problem = "its registry and repository would be read back differently"
        if problem is not None:
            raise InvalidReference(f"invalid reference {_shown(self._joined())}: {problem}")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as docker does; the tag is ``latest`` where neither tag nor digest is written.

        Raises:
            InvalidReference: the message names the text and what is wrong with it.
        """
        rest, at, digest = text.partition("@")
        head, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:  # the colon, if any, is that of a registry's port
            head, colon, tag = rest, "", ""
        registry, repository = _split(head)
        problem = (
            _shape_problem(text, head)
            or (_tag_problem(tag) if colon else None)
            or (digest_problem(digest) if at else None)
            or _registry_problem(registry)
            or _repository_problem(repository)
        )
        if problem is not None:
            raise InvalidReference(f"invalid reference {_shown(text)}: {problem}")
        return cls(
            registry=registry,
            repository=repository,
            tag=tag if colon else (None if at else DEFAULT_TAG),
            digest=digest if at else None,
        )

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/library/alpine``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """The name as docker prints it: ``alpine``, ``user/x``, ``ghcr.io/user/x``.

        It is the whole name where the short one would be read as something else (``docker.io/a.b/c``).
        """
        short = self.repository.removeprefix(_OFFICIAL)
        for name in (short, self.repository):
            if _split(name) == (self.registry, self.repository) and not _ID.fullmatch(name):
                return name
        return self.name

    @property
    def familiar(self) -> str:
        """The whole reference as docker prints it: ``alpine:latest``."""
        return self.familiar_name + self._suffix()

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_tag(self, tag: str) -> Reference:
        """The same name with this tag and no digest."""
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: str) -> Reference:
        """The same name with this digest and no tag."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        return self._joined()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag is not None else "") + (f"@{self.digest}" if self.digest is not None else "")

    def _joined(self) -> str:
        return self.name + self._suffix()


def check_registry(host: str) -> None:
    """Refuse what no reference could begin with to mean a registry.

    Raises:
        InvalidReference: the message names the host and what is wrong with it.
    """
    problem = _registry_problem(host)
    if problem is None and _split(f"{host}/x/x")[0] != host:
        problem = "without a dot or a port it would be part of an image's name"
    if problem is not None:
        raise InvalidReference(f"invalid registry {_shown(host)}: {problem}")


def lacks_registry(name: str) -> bool:
    """Whether a name, or a whole reference, leaves out which registry is meant."""
    first, slash, _ = name.partition("/")
    return not (slash and ("." in first or ":" in first or first == "localhost"))


def _split(name: str) -> tuple[str, str]:
    """Registry and repository of a name without tag and digest."""
    registry, repository = DEFAULT_REGISTRY, name
    if not lacks_registry(name):
        registry, _, repository = name.partition("/")
    if registry == _LEGACY_REGISTRY:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _shape_problem(text: str, name: str) -> str | None:
    """What is wrong with the text as a whole."""
    if not text:
        return "it is empty"
    if "://" in text:
        return "it is an address, not a reference (leave out the scheme)"
    if not name:
        return "the repository name is missing"
    if _ID.fullmatch(name):
        return "64 hexadecimal digits are an image id, not a name"
    return None


def _registry_problem(registry: str) -> str | None:
    match = _REGISTRY.fullmatch(registry) if len(registry) <= _LONGEST else None
    if match is None:
        return "the registry is not a host name with an optional port"
    if match["port"] is not None and not 0 < int(match["port"]) < 65536:
        return "the registry's port is not between 1 and 65535"
    return None


def _repository_problem(repository: str) -> str | None:
    if len(repository) > _LONGEST:
        return f"the repository name is longer than {_LONGEST} characters"
    if _REPOSITORY.fullmatch(repository):
        return None
    if _REPOSITORY.fullmatch(repository.lower()):
        return "the repository name must be in lower case"
    if not repository or "//" in repository or repository.startswith("/") or repository.endswith("/"):
        return "the repository name has an empty part"
    return "the repository name must be made of a-z, 0-9 and single separators (. _ __ -) between them"


def _tag_problem(tag: str) -> str | None:
    if _TAG.fullmatch(tag):
        return None
    if not tag:
        return "the tag is empty"
    if len(tag) > 128:
        return "the tag is longer than 128 characters"
    return "the tag must be made of letters, digits, _ . and -, and begin with neither . nor -"


def _shown(text: str) -> str:
    """The text in quotes, safe to print: bounded, without control characters."""
    return ascii(text if len(text) <= 100 else text[:97] + "...")
