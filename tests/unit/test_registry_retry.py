"""When and how long to wait before trying again."""

from __future__ import annotations

import email.utils

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import AuthenticationError, DigestMismatch, RegistryError
from crungo.registry.retry import Backoff, RetryPolicy, is_transient, parse_retry_after


def failed(status: int | None = None, cause: BaseException | None = None) -> RegistryError:
    error = RegistryError("x: failed", status=status)
    error.__cause__ = cause
    return error


def refused_connection(reason: OSError) -> httpcore.ConnectError:
    error = httpcore.ConnectError("no")
    error.__context__ = reason
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (failed(429), True),
        (failed(500), True),
        (failed(502), True),
        (failed(503), True),
        (failed(504), True),
        (failed(501), False),
        (failed(416), False),
        (AuthenticationError("x", status=401), False),
        (failed(), False),
        (failed(cause=httpcore.ReadError("reset")), True),
        (failed(cause=httpcore.RemoteProtocolError("truncated")), True),
        (failed(cause=httpcore.ReadTimeout("stalled")), True),
        (failed(cause=httpcore.ConnectTimeout("slow")), True),
        (failed(cause=httpcore.ConnectError("refused")), False),
        (failed(cause=refused_connection(ConnectionRefusedError(111, "refused"))), False),
        (failed(cause=refused_connection(ConnectionResetError(104, "reset"))), True),
        (failed(cause=httpcore.LocalProtocolError("ours")), False),
        (DigestMismatch("x"), False),
        (ValueError(), False),
    ],
)
def test_what_may_pass(error: BaseException, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_server_that_has_answered_may_be_starting_anew() -> None:
    error = failed(cause=refused_connection(ConnectionRefusedError(111, "refused")))
    error.answering = True
    assert is_transient(error)
    other = failed(cause=httpcore.ConnectError("its name does not resolve"))
    other.answering = True
    assert not is_transient(other)


@given(st.integers(0, 10_000), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_no_wait_is_longer_than_the_caps(attempt: int, uniform: float, retry_after: float | None) -> None:
    policy = RetryPolicy()
    wait = policy.wait(attempt, retry_after=retry_after, uniform=uniform)
    assert 0 <= wait <= max(policy.cap, policy.retry_after_cap)
    assert wait >= min(retry_after or 0, policy.retry_after_cap)
    if not retry_after:
        assert wait <= policy.base * 2 ** min(attempt, 60)
    assert wait >= min(policy.base * 2 ** min(attempt, 60), policy.cap) / 2  # patience is not left to chance


def test_a_given_delay_replaces_the_schedule() -> None:
    assert RetryPolicy(delay=3.0).wait(5, uniform=0.0) == 3.0
    assert RetryPolicy(delay=3.0).wait(5, retry_after=8.0) == 8.0


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_breaks_the_parser(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.anyio
async def test_backoff_waits_and_gives_up() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    backoff = Backoff(policy=RetryPolicy(retries=3, base=1.0), sleep=sleep, uniform=lambda: 1.0)
    limited = failed(429)
    limited.retry_after = 7.5
    await backoff.again(failed(503))
    await backoff.again(limited)
    await backoff.again(failed(503))
    with pytest.raises(RegistryError) as caught:
        await backoff.again(limited)
    assert caught.value is limited
    assert waits == [1.0, 7.5, 4.0]
    backoff.progressed()
    await backoff.again(failed(503))
    assert waits[-1] == 1.0
    with pytest.raises(RegistryError):
        await backoff.again(failed(404))
