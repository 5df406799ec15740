"""Which servers hold an image: ``registries.conf`` (version 2) as values, and the places to ask, in order. Pure.

The format is that of containers-registries.conf(5): mirrors, prefixes that are rewritten to other locations, insecure
and blocked registries, aliases of short names, and where these are looked for. ``docker.io`` is served by
``registry-1.docker.io``.

Invariant: plain http is offered only for loopback hosts and for those that the configuration calls insecure, and a
blocked prefix yields no place at all.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Literal, cast

from crungo.errors import ConfigurationError, RegistryError, UsageError
from crungo.image.reference import lacks_registry
from crungo.records import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crungo.image.reference import Reference

__all__ = ["Endpoint", "Hosts", "Mirror", "Registry", "filed_under", "host_of", "is_loopback", "parse_registries_conf"]

DOCKER_HUB = "docker.io"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_TEXT = r'"([^"\\\x00-\x1f\x7f]*)"'  # a TOML string without escapes
_ALIAS_LINE = re.compile(rf"[ \t]*(?:(\[aliases\])|{_TEXT}[ \t]*=[ \t]*{_TEXT})?[ \t]*(?:#[^\x00-\x08\x0a-\x1f\x7f]*)?")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?"
_PATH = r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
# Patterns here and beside it are compiled when they are first used: most pulls use none of them.
_LOCATION = _HOST + _PATH
_PREFIX = rf"(?:\*\.)?{_HOST}{_PATH}"

PullFrom = Literal["all", "digest-only", "tag-only"]
_PULL_FROM: tuple[PullFrom, ...] = ("all", "digest-only", "tag-only")


class Endpoint(Record):
    """One place to ask for a repository.

    ``base_url`` has a scheme, a host and perhaps a port, and no path. ``registry`` is the host (with port) as the
    configuration and the user write it; credentials and certificates are filed under it. ``insecure`` allows unverified
    TLS and redirects to plain http.
    """

    base_url: str
    registry: str
    repository: str
    insecure: bool = False
    mirror: bool = False


class Mirror(Record):
    """Another location of a registry's content; ``pull`` says for which references it is asked."""

    location: str
    insecure: bool = False
    pull: PullFrom = "all"


class Registry(Record):
    """One ``[[registry]]`` table. An empty ``location`` leaves names as they are."""

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()


class Hosts(Record):
    """What is configured about registries. The empty value is right for a host without any configuration.

    ``search`` are the registries in which a name without one may be meant; none is Docker Hub.
    """

    registries: tuple[Registry, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    search: tuple[str, ...] = ()

    def merged(self, later: Hosts) -> Hosts:
        """This configuration with ``later`` on top: a prefix given again replaces the earlier table whole."""
        replaced = {registry.prefix for registry in later.registries}
        kept = tuple(registry for registry in self.registries if registry.prefix not in replaced)
        return Hosts(
            registries=kept + later.registries,
            aliases={**self.aliases, **later.aliases},
            search=later.search or self.search,
        )

    def expand(self, name: str) -> str:
        """``name`` as a user wrote it, its short name replaced by what it stands for; tag and digest stay.

        Raises:
            UsageError: it is short for several.
        """
        first, *others = self.candidates(name)
        if others:
            raise UsageError(
                f"{name}: unqualified-search-registries has several registries for it: {', '.join(self.search)}",
                hint=f"write the one that is meant, as in {first}",
            )
        return first

    def candidates(self, name: str) -> list[str]:
        """All that a name as a user wrote it may be short for: an alias, else one of each registry that is searched.

        Where Docker Hub is among these, it is meant, as without any: a name means the same on most machines, and a
        registry of the house is not asked for what is Docker Hub's.
        """
        aliased = self._aliased(name)
        if aliased != name or not self.search or not lacks_registry(name):
            return [aliased]
        return [name] if _DOCKER_HUB_NAMES & set(self.search) else [f"{registry}/{name}" for registry in self.search]

    def _aliased(self, name: str) -> str:
        short, at, digest = name.partition("@")
        colon, tag = "", ""
        if ":" in short.rpartition("/")[2]:
            short, colon, tag = short.rpartition(":")
        alias = self.aliases.get(short, "")  # an empty alias takes an earlier file's away
        return f"{alias}{colon}{tag}{at}{digest}" if alias else name

    def find(self, name: str) -> Registry | None:
        """The table for ``name`` (``host[:port][/path]``): the one with the longest matching prefix."""
        matches = ((len(_matched(name, registry.prefix)), registry) for registry in self.registries)
        best = max(matches, key=lambda match: match[0], default=(0, None))
        return best[1] if best[0] else None

    def is_insecure(self, host: str) -> bool:
        """Whether ``host[:port]`` as a whole may be spoken to without verified TLS."""
        registry = self.find(host)
        return registry is not None and registry.insecure

    def endpoints(self, reference: Reference) -> tuple[Endpoint, ...]:
        """The places to ask for ``reference``, best first: mirrors in their order, then the registry itself.

        Raises:
            RegistryError: the configuration blocks the registry, or rewrites the name into none.
        """
        name = f"{reference.registry}/{reference.repository}"
        registry = self.find(name)
        if registry is None:
            return _at(name, insecure=False, mirror=False)
        if registry.blocked:
            raise RegistryError(
                f"{name}: registry is blocked by configuration", hint=f"see prefix {registry.prefix} in registries.conf"
            )
        matched = _matched(name, registry.prefix)
        rest = name[len(matched) :]
        skipped: PullFrom = "tag-only" if reference.digest is not None else "digest-only"
        places: list[Endpoint] = []
        for mirror in registry.mirrors:
            if mirror.pull != skipped:
                places += _at(mirror.location + rest, insecure=mirror.insecure, mirror=True)
        places += _at((registry.location or matched) + rest, insecure=registry.insecure, mirror=False)
        return tuple(places)

    def login_endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """The places where credentials for ``host[:port]`` are checked; their ``repository`` is empty."""
        return _schemes(host, "", insecure=self.is_insecure(host), mirror=False)


def parse_registries_conf(text: str, *, source: str) -> Hosts:
    """Read one file; ``source`` names it in errors.

    Raises:
        ConfigurationError: the text is no TOML, or breaks containers-registries.conf(5).
    """
    document = _read_aliases(text)
    if document is None:
        import tomllib

        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigurationError(f"{source}: {error or 'nested too deeply'}") from None
    if "registries" in document:
        raise ConfigurationError(
            f"{source}: version 1 of the format is not supported", hint="write [[registry]] tables"
        )
    tables = _typed(document, "registry", list, [], source)
    aliases = _typed(document, "aliases", dict, {}, source)
    if not all(isinstance(value, str) for value in aliases.values()):
        raise ConfigurationError(f"{source}: aliases: every value must be a string")
    search = _typed(document, "unqualified-search-registries", list, [], source)
    for host in search:
        if not isinstance(host, str) or not re.fullmatch(_LOCATION, host):
            raise ConfigurationError(f"{source}: unqualified-search-registries: {host!r} must be host[:port][/path]")
    return Hosts(registries=tuple(_registry(table, source) for table in tables), aliases=aliases, search=tuple(search))


def _read_aliases(text: str) -> dict[str, Any] | None:
    """The document where it holds comments and aliases alone, as what distributions ship does; else None.

    To import tomllib takes 4 ms, of a pull that may have nothing to fetch in 80.
    """
    document: dict[str, Any] = {}
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _ALIAS_LINE.fullmatch(line)
        if match is None:
            return None
        header, name, value = match.groups()
        if header is not None and "aliases" not in document:
            document["aliases"] = {}
        elif header is not None or (name is not None and name in document.get("aliases", (name,))):
            return None  # twice the same, or no alias: for whoever can say what is wrong
        elif name is not None:
            document["aliases"][name] = value
    return document


def host_of(host: str) -> str:
    """``host[:port]`` without its port, an IPv6 address without its brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def filed_under(host: str) -> str:
    """The registry that ``host[:port]`` serves, under which credentials and certificates are filed."""
    return DOCKER_HUB if host in _DOCKER_HUB_NAMES else host


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` is this machine: ``localhost``, 127.0.0.0/8 or ``[::1]``."""
    name = host_of(host)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _registry(table: object, source: str) -> Registry:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{source}: registry: must be a table")
    location = _place(table, "location", source)
    prefix = _place(table, "prefix", source) or location
    where = f"{source}: registry {prefix!r}"
    if not re.fullmatch(_PREFIX, prefix):
        raise ConfigurationError(f"{where}: prefix must be host[:port][/path] or *.domain, without a tag or digest")
    if not location and not prefix.startswith("*."):
        location = prefix
    if location and not re.fullmatch(_LOCATION, location):
        raise ConfigurationError(f"{where}: location {location!r} must be host[:port][/path]")
    digest_only = _typed(table, "mirror-by-digest-only", bool, False, where)
    return Registry(
        prefix=prefix,
        location=location,
        insecure=_typed(table, "insecure", bool, False, where),
        blocked=_typed(table, "blocked", bool, False, where),
        mirrors=tuple(
            _mirror(mirror, where, "digest-only" if digest_only else "all")
            for mirror in _typed(table, "mirror", list, [], where)
        ),
    )


def _mirror(table: object, where: str, default: PullFrom) -> Mirror:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: mirror: must be a table")
    location = _place(table, "location", where)
    if not re.fullmatch(_LOCATION, location):
        raise ConfigurationError(f"{where}: mirror location {location!r} must be host[:port][/path]")
    pull = _typed(table, "pull-from-mirror", str, "", where) or default
    if pull not in _PULL_FROM:
        raise ConfigurationError(f"{where}: mirror {location}: pull-from-mirror must be one of {', '.join(_PULL_FROM)}")
    return Mirror(
        location=location, insecure=_typed(table, "insecure", bool, False, where), pull=cast("PullFrom", pull)
    )


def _place(table: Mapping[str, Any], key: str, where: str) -> str:
    """A prefix or a location; a slash at its end means nothing."""
    text: str = _typed(table, key, str, "", where)
    return text.rstrip("/")


def _typed(table: Mapping[str, Any], key: str, kind: type[Any], default: Any, where: str) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise ConfigurationError(f"{where}: {key}: must be a {kind.__name__}")
    return value


def _matched(name: str, prefix: str) -> str:
    """The leading part of ``name`` that ``prefix`` stands for, empty where it does not match.

    A prefix ends at a ``/`` or at the name's end: ``example.com`` matches neither ``example.com:5000/x`` nor
    ``example.community/x``.
    """
    if prefix.startswith("*."):
        host, _, path = prefix[1:].partition("/")
        name_host = name.partition("/")[0]
        if not name_host.endswith(host) or name_host == host:
            return ""
        prefix = f"{name_host}/{path}" if path else name_host
    return prefix if name == prefix or name.startswith(prefix + "/") else ""


def _at(name: str, *, insecure: bool, mirror: bool) -> tuple[Endpoint, ...]:
    host, _, repository = name.partition("/")
    if not repository:
        raise RegistryError(f"{name}: registries.conf rewrites the image's name to a registry alone")
    if host in _DOCKER_HUB_NAMES and "/" not in repository:
        repository = f"library/{repository}"
    return _schemes(host, repository, insecure=insecure, mirror=mirror)


def _schemes(host: str, repository: str, *, insecure: bool, mirror: bool) -> tuple[Endpoint, ...]:
    """One endpoint for each scheme that ``host`` may be spoken to with.

    A loopback host is asked by plain http first: that is what local registries nearly always speak, nothing leaves the
    machine, and a server of TLS answers it with a clean 400.
    """
    schemes = ("http", "https") if is_loopback(host) else ("https", "http") if insecure else ("https",)
    registry = filed_under(host)
    served_by = "registry-1.docker.io" if registry == DOCKER_HUB else host
    return tuple(
        Endpoint(
            base_url=f"{scheme}://{served_by}",
            registry=registry,
            repository=repository,
            insecure=insecure,
            mirror=mirror,
        )
        for scheme in schemes
    )
