"""Turning refusals and broken connections into errors that say which registry, what was asked and why it failed. Pure.

Invariant: each message is one line, ``<what failed>: <why>``; what a registry said has gone through ``printable``.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from crungo.errors import AuthenticationError, ImageNotFound, RegistryError
from crungo.registry.headers import error_detail, printable
from crungo.registry.hosts import filed_under
from crungo.registry.retry import chain, is_alert, parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["refused", "unreachable"]

_WAITING = (ssl.SSLWantReadError, ssl.SSLWantWriteError)  # no failures
# By OpenSSL's number. What is not here is an authority that is not known.
_RENEW = "it has to be renewed, if the clock of this machine is right"
_OTHER_NAME = "ask for it by a name that the certificate is made out to, or call it insecure"
_CERTIFICATE_HINTS = {9: _RENEW, 10: _RENEW, 62: _OTHER_NAME, 64: _OTHER_NAME}


def refused(
    what: str, registry: str, status: int, *, headers: Mapping[str, str], body: bytes, hint: str | None = None
) -> RegistryError:
    """The error for an answer that is not what was asked for. ``what`` names the thing asked (``manifest of x:1``)."""
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    detail = error_detail(body, headers.get("content-type"))
    message = f"{what}: {registry} answered {phrase}" + (f" ({detail})" if detail else "")
    named = what.startswith("manifest ")  # by the user; other things are named by it
    if status in (401, 403):
        # Docker Hub, for one, answers so for what it does not have.
        mistaken = f"check its name; if that is right, log in: crungo login {registry}"
        login = f"log in first: crungo login {registry}"
        return AuthenticationError(message, status=status, hint=hint or (mistaken if named else login))
    if status == 404:
        return ImageNotFound(message, status=status, hint=hint or ("check its name and tag" if named else None))
    error = RegistryError(message, status=status, hint=hint)
    error.retry_after = parse_retry_after(headers.get("retry-after"), now=time.time())
    return error


def unreachable(what: str, host: str, error: Exception, *, proxy: str | None = None) -> RegistryError:
    """The error for a request without an answer, or with an answer that was cut short. The caller chains ``error``.

    ``proxy`` is who was asked for the host.
    """
    links = chain(error)
    for link in links:
        if isinstance(link, ssl.SSLError) and not isinstance(link, _WAITING):
            return _tls_failed(what, host, link)
    why = next((reason for link in reversed(links) if (reason := _reason(link))), None)
    asked = f"{host}: proxy {proxy}" if proxy else host
    return RegistryError(f"{what}: {asked}: {why or printable(str(error)) or type(error).__name__}")


def _tls_failed(what: str, host: str, error: ssl.SSLError) -> RegistryError:
    folder = f"/etc/containers/certs.d/{filed_under(host)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = printable(error.verify_message).rstrip(".")
        return RegistryError(
            f"{what}: {host}: certificate is not trusted: {why}",
            hint=_CERTIFICATE_HINTS.get(
                error.verify_code, f"put its authority into {folder}/ca.crt, or call it insecure"
            ),
        )
    reason = (error.reason or str(error)).replace("_", " ").lower()
    hint = None
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        hint = "it seems to speak plain http: call it insecure in registries.conf to allow that"
    elif is_alert(error) and "certificate" in reason:
        hint = f"it wants another client certificate than it got, if any: that is {folder}/client.cert and client.key"
    return RegistryError(f"{what}: {host}: TLS failed: {printable(reason)}", hint=hint)


def _reason(link: BaseException) -> str | None:
    """One link of a chain of causes, in words, where it knows more than the others."""
    if isinstance(link, socket.gaierror):
        return "its name does not resolve" if link.errno == socket.EAI_NONAME else printable(link.strerror or "")
    if isinstance(link, (BlockingIOError, *_WAITING)):
        return None  # what a wait began with, whose end is another link's to tell
    if isinstance(link, OSError) and link.errno is not None:
        return os.strerror(link.errno).lower() if link.errno in errno.errorcode else None
    return None
