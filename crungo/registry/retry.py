"""When to try again, and after how long. The schedule is pure; the clock and the randomness are given.

Tried again is what may pass by itself: 429 and 5xx answers, connections that were reset, bodies that were cut short,
time-outs, and refused connections to a server that has answered before: it may be starting anew. A name that does not
resolve, the refusal of a first connection and a broken certificate are reported at once.

Invariant: no wait is longer than the policy's caps, whatever a registry asks for.
"""

from __future__ import annotations

import random
import re
import ssl
from typing import TYPE_CHECKING

import anyio
import httpcore

from crungo.errors import RegistryError
from crungo.records import Record, field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Tell = Callable[[str, float], None]
    """Is told why something is tried again, in one line for a person, and in how many seconds."""

__all__ = [
    "Backoff",
    "RetryPolicy",
    "chain",
    "is_alert",
    "is_transient",
    "is_transient_status",
    "parse_retry_after",
    "silent",
]

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_SECONDS = re.compile(r"[0-9]{1,9}")


def silent(_reason: str, _wait: float) -> None:
    """Tell nobody."""


class RetryPolicy(Record):
    """How often and how patiently. Times are in seconds.

    Without ``delay``, the n-th wait, from 0, is ``base * 2**n``, at most ``cap``; a random part of it, less than half,
    is left out, so that many clients that failed together do not come back together. (All of it at random could be
    three waits of next to nothing, and a registry that restarts takes seconds.) A given ``delay`` replaces the
    schedule. A registry's ``Retry-After`` is a lower bound, honoured up to ``retry_after_cap``.
    """

    retries: int = 3
    delay: float | None = None
    base: float = 1.0
    cap: float = 30.0
    retry_after_cap: float = 120.0

    def wait(self, attempt: int, *, retry_after: float | None = None, uniform: float = 1.0) -> float:
        """Seconds to wait after the failure number ``attempt`` (from 0); ``uniform`` is a random number in [0, 1]."""
        jittered = min(self.cap, self.base * 2 ** min(attempt, 30)) * (0.5 + uniform / 2)
        chosen = jittered if self.delay is None else self.delay
        return max(chosen, min(retry_after or 0.0, self.retry_after_cap))


class Backoff(Record, frozen=False):
    """The state of one operation's retries. ``sleep`` and ``uniform`` are given in tests."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    failures: int = 0
    sleep: Callable[[float], Awaitable[object]] = anyio.sleep
    uniform: Callable[[], float] = random.random

    async def again(self, error: RegistryError, *, tell: Tell = silent) -> None:
        """Wait until the operation that failed with ``error`` may be tried again; ``tell`` is told before.

        Raises:
            RegistryError: ``error`` itself, when it will not pass by itself or has passed its last retry.
        """
        if error.retried or self.failures >= self.policy.retries or not is_transient(error):
            raise error
        seconds = self.policy.wait(self.failures, retry_after=error.retry_after, uniform=self.uniform())
        self.failures += 1
        tell(error.message.partition(": ")[2] or error.message, seconds)  # what was asked for, whoever is told knows
        await self.sleep(seconds)

    def progressed(self) -> None:
        """Something was achieved since the last failure: count from the start again."""
        self.failures = 0


def is_transient_status(status: int) -> bool:
    """Whether an answer of this status may be another one the next time."""
    return status in _TRANSIENT_STATUS


def is_transient(error: BaseException) -> bool:
    """Whether the failure may pass by itself."""
    if not isinstance(error, RegistryError):
        return False
    if error.status is not None:
        return is_transient_status(error.status)
    cause = error.__cause__
    if cause is not None and any(map(is_alert, chain(cause))):
        return False  # of TLS 1.3, a refusal of our certificate comes when the connection stands
    if isinstance(cause, httpcore.ConnectError):
        passing = (ConnectionResetError, ConnectionRefusedError) if error.answering else ConnectionResetError
        return any(isinstance(link, passing) for link in chain(cause))
    return isinstance(cause, httpcore.TimeoutException | httpcore.NetworkError | httpcore.RemoteProtocolError)


def is_alert(error: BaseException) -> bool:
    """Whether it is an alert of TLS that the server sent."""
    return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")


def chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it, outermost first.

    Contexts count as causes: httpcore re-raises its errors ``from None``, which drops the cause and leaves the context.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait from a ``Retry-After`` header (RFC 9110, 10.2.3): a number of seconds or an HTTP date.

    ``now`` is the wall clock, in seconds since the epoch. None for an absent or malformed header; never negative.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not text:
        return None
    from email.utils import parsedate_to_datetime  # few send a date, and none when all is well

    try:
        date = parsedate_to_datetime(text)
        return max(0.0, date.timestamp() - now)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
