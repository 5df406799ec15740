"""Finding and reading what is configured about registries: ``registries.conf``, its drop-ins, and ``certs.d``.

The places are those of containers-registries.conf(5), containers-certs.d(5) and docker's ``/etc/docker/certs.d``. All
functions are synchronous and read a few small files: call them from a worker thread.

Invariant: a file that is absent is the same as an empty one; a file that is present and wrong is an error that names
it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crungo.errors import ConfigurationError
from crungo.records import Record
from crungo.registry.hosts import Hosts, parse_registries_conf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Certificates", "certificate_folders", "find_certificates", "load_hosts"]

_SYSTEM = "/etc/containers"


class Certificates(Record):
    """The files for one host: extra certificate authorities, and pairs of client certificate and key."""

    authorities: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()


def load_hosts(environ: Mapping[str, str] = os.environ) -> Hosts:
    """All of registries.conf that applies to this user.

    The main file is ``$CONTAINERS_REGISTRIES_CONF``, else the user's, else the system's. Then the drop-ins, in the
    order of their names, later ones on top: of ``$CONTAINERS_REGISTRIES_CONF_DIR``, else of the system, then of the
    user.

    Raises:
        ConfigurationError: a file is malformed or cannot be read, or the one that the environment names does not exist.
    """
    user = os.path.join(_config_home(environ), "containers")
    explicit = environ.get("CONTAINERS_REGISTRIES_CONF")
    if explicit and not os.path.exists(explicit):
        raise ConfigurationError(f"{explicit}: no such file (CONTAINERS_REGISTRIES_CONF)")
    mains = [explicit] if explicit else [os.path.join(user, "registries.conf"), f"{_SYSTEM}/registries.conf"]
    folder = environ.get("CONTAINERS_REGISTRIES_CONF_DIR")
    folders = [folder] if folder else [f"{_SYSTEM}/registries.conf.d", os.path.join(user, "registries.conf.d")]
    files = next(([main] for main in mains if os.path.exists(main)), [])
    for folder in folders:
        files += _listed(folder, ".conf")
    hosts = Hosts()
    for file in files:
        hosts = hosts.merged(parse_registries_conf(_read(file), source=file))
    return hosts


def certificate_folders(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The folders that hold one folder per host, the most specific first."""
    return (os.path.join(_config_home(environ), "containers/certs.d"), f"{_SYSTEM}/certs.d", "/etc/docker/certs.d")


def find_certificates(host: str, folders: Sequence[str]) -> Certificates:
    """The certificates for ``host[:port]``, from the first of ``folders`` that has something for it.

    ``*.crt`` are authorities; ``x.cert`` is a client certificate and ``x.key`` its key.

    Raises:
        ConfigurationError: a certificate lacks its key, or a key its certificate.
    """
    for folder in folders:
        place = os.path.join(folder, host)
        if "/" in host or not os.path.isdir(place):
            continue
        certificates, keys = _listed(place, ".cert"), _listed(place, ".key")
        pairs = tuple((cert, cert.removesuffix(".cert") + ".key") for cert in certificates)
        for cert, key in pairs:
            if key not in keys:
                raise ConfigurationError(f"{cert}: its key {os.path.basename(key)} is missing")
        for key in keys:
            if key.removesuffix(".key") + ".cert" not in certificates:
                raise ConfigurationError(
                    f"{key}: its certificate is missing", hint="client certificates end in .cert, not .crt"
                )
        return Certificates(authorities=tuple(_listed(place, ".crt")), clients=pairs)
    return Certificates()


def _config_home(environ: Mapping[str, str]) -> str:
    return environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")


def _listed(folder: str, suffix: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # another user's folder is none of ours
    return [os.path.join(folder, name) for name in names if name.endswith(suffix)]


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
