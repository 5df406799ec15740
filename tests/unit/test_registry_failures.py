"""What is said of a request without an answer."""

from __future__ import annotations

import ssl

import httpcore
import pytest

from crungo.registry.failures import unreachable
from crungo.registry.retry import is_transient


def not_trusted(code: int, message: str) -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def failed(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "failed")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("cause", "message", "hint"),
    [
        (
            not_trusted(20, "unable to get local issuer certificate"),
            "unable to get local",
            "certs.d/reg.test:5000/ca.crt",
        ),
        (not_trusted(18, "self-signed certificate"), "self-signed certificate", "certs.d/reg.test:5000/ca.crt"),
        (not_trusted(10, "certificate has expired"), "certificate has expired", "has to be renewed"),
        (not_trusted(9, "certificate is not yet valid"), "is not yet valid", "clock of this machine"),
        (not_trusted(62, "Hostname mismatch."), "Hostname mismatch", "ask for it by a name"),
        (failed("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "alert certificate required", "reg.test:5000/client.cert"),
        (failed("WRONG_VERSION_NUMBER"), "wrong version number", "plain http"),
    ],
)
def test_tls(cause: ssl.SSLError, message: str, hint: str) -> None:
    """The hint is about what helps: no authority makes an expired certificate a good one."""
    error = httpcore.ReadError("x")
    error.__cause__ = cause
    told = unreachable("manifest x", "reg.test:5000", error)
    assert str(told).startswith("manifest x: reg.test:5000: ")
    assert message in str(told)
    assert told.hint is not None
    assert hint in told.hint


def test_docker_hub_is_called_by_its_name() -> None:
    """It is under that that its certificates are looked for."""
    error = httpcore.ReadError("x")
    error.__cause__ = not_trusted(20, "unable to get local issuer certificate")
    told = unreachable("x", "registry-1.docker.io", error)
    assert told.hint is not None
    assert "certs.d/docker.io/ca.crt" in told.hint


def test_a_handshake_that_does_not_come_about() -> None:
    """What a wait began with is no failure of TLS, nor of a file."""
    error = httpcore.ConnectTimeout("no TLS handshake within 15 seconds")
    error.__cause__ = TimeoutError()
    error.__cause__.__context__ = ssl.SSLWantReadError(2, "The operation did not complete (read)")
    assert str(unreachable("x", "reg.test", error)) == "x: reg.test: no TLS handshake within 15 seconds"


def test_a_refused_client_certificate_is_not_tried_again() -> None:
    """With TLS 1.3, the server says so when the client believes that the connection stands."""
    error = httpcore.ReadError("x")
    error.__cause__ = failed("TLSV13_ALERT_CERTIFICATE_REQUIRED")
    told = unreachable("x", "reg.test", error)
    told.__cause__ = error
    assert not is_transient(told)
