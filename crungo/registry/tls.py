"""TLS contexts: the system's authorities, those of ``certs.d``, client certificates, or no verification at all.

Building one reads files and takes some 10 to 30 milliseconds: do it in a worker thread, and only when https is spoken.

Invariant: without ``insecure``, certificates and host names are always verified.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import httpcore

from crungo.errors import ConfigurationError

if TYPE_CHECKING:
    from crungo.registry.hostfiles import Certificates

__all__ = ["build_context", "build_plain_context"]


def build_context(certificates: Certificates, *, insecure: bool) -> ssl.SSLContext:
    """A client context for hosts with these ``certificates``.

    The authorities are the system's (``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are honoured), because that is where the
    administrators of private registries install theirs; a system without any falls back to certifi's.

    Raises:
        ConfigurationError: a file of ``certificates`` cannot be read or is malformed.
    """
    if insecure:
        context = build_plain_context()  # whom to trust is not asked, and takes 20 ms to read
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
        if not _system_has_authorities(context):
            context = httpcore.default_ssl_context()
    for authority in certificates.authorities:
        try:
            context.load_verify_locations(cafile=authority)
        except OSError as error:
            raise ConfigurationError(f"{authority}: {error.strerror or error}") from None
    for certificate, key in certificates.clients:
        try:
            # An encrypted key must fail here; without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(certificate, key, password=b"")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{certificate}: {getattr(error, 'strerror', None) or error}") from None
    return context


def build_plain_context() -> ssl.SSLContext:
    """A context that trusts nobody, for clients that speak plain http only: cheap, and safe if used by mistake."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _system_has_authorities(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"]:
        return True
    folder = ssl.get_default_verify_paths().capath  # its certificates are read when they are needed, so not counted yet
    try:
        return bool(folder and os.listdir(folder))
    except OSError:
        return False
