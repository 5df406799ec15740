"""Asking the places that hold an image, one after the other, until one gives what was asked for.

A round asks every place that may still help: mirrors in their order, then the registry. When all have failed and some
failures may pass by themselves, the next round, after a wait, asks those again.

Invariant: an answer is either handed to ``use``, which owns it from then on unless it raises, or closed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from crungo.errors import AuthenticationError, DigestMismatch, RegistryError
from crungo.registry.challenges import Challenge, parse_challenges
from crungo.registry.failures import refused
from crungo.registry.retry import Backoff, is_transient
from crungo.registry.wire import Outgoing, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from crungo.registry.answer import Answer
    from crungo.registry.hosts import Endpoint
    from crungo.registry.tokens import Tokens

__all__ = ["Ask", "Session"]

T = TypeVar("T")
_LARGEST_REFUSAL = 64 << 10  # bytes of an error's body


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request to any of several endpoints: ``path`` below ``/v2/<repository>/``, or a whole ``url``.

    ``what`` names the thing asked for in messages; ``accept`` are the statuses to hand on; ``hint`` is for a refusal.
    """

    what: str
    path: str = ""
    url: str | None = None
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    accept: frozenset[int] = frozenset({200})
    hint: str | None = None

    def url_at(self, endpoint: Endpoint) -> str:
        """The address to ask at ``endpoint``."""
        below = f"{endpoint.repository}/{self.path}" if endpoint.repository else self.path
        return self.url or f"{endpoint.base_url}/v2/{below}"


class Session:
    """Remembers which places failed, and asks them last from then on."""

    def __init__(self, wire: Wire, tokens: Tokens) -> None:
        self._wire = wire
        self._tokens = tokens
        self._silent: set[str] = set()  # base URLs where no answer came from
        self._unhelpful: set[tuple[str, str]] = set()  # base URL and repository that were refused

    async def fetch(
        self,
        endpoints: Sequence[Endpoint],
        ask: Ask,
        use: Callable[[Endpoint, Answer], Awaitable[T]],
        *,
        backoff: Backoff,
    ) -> T:
        """What ``use`` makes of the first acceptable answer.

        Raises:
            RegistryError: all places failed; it is the registry's own failure rather than a mirror's.
            DigestMismatch: likewise, where ``use`` finds that content is not what it should be.
        """
        failures: dict[Endpoint, RegistryError | DigestMismatch] = {}
        places = sorted(endpoints, key=self._is_poor)  # stable: the configured order, but what failed before comes last
        while True:
            answered: set[tuple[str, str]] = set()
            for endpoint in places:
                if (endpoint.registry, endpoint.repository) in answered:
                    continue  # another scheme of a server that has spoken
                try:
                    result = await self._ask(endpoint, ask, use)
                except (RegistryError, DigestMismatch) as error:
                    failures[endpoint] = error
                    if self._has_spoken(endpoint, error):
                        answered.add((endpoint.registry, endpoint.repository))
                else:
                    self._silent.discard(endpoint.base_url)
                    return result
            transient = [endpoint for endpoint in places if is_transient(failures.get(endpoint, ValueError()))]
            reported = _worth_telling(endpoints, failures)
            if not transient:
                raise reported
            passing = failures[transient[-1]]
            assert isinstance(passing, RegistryError)
            try:
                await backoff.again(passing)
            except RegistryError:
                raise reported from reported.__cause__
            places = transient

    async def _ask(self, endpoint: Endpoint, ask: Ask, use: Callable[[Endpoint, Answer], Awaitable[T]]) -> T:
        header = await self._tokens.current(endpoint, ask.what)
        answer = await self._send(endpoint, ask, header)
        try:
            if answer.status == 401 and not answer.foreign:
                challenges = parse_challenges(answer.headers.get_list("www-authenticate"))
                if challenges:
                    await answer.aclose()
                    header = await self._renewed(endpoint, ask, challenges, header)
                    answer = await self._send(endpoint, ask, header)
            if answer.status not in ask.accept:
                raise await self._refusal(endpoint, ask, answer)
            return await use(endpoint, answer)
        except BaseException:
            await answer.aclose()
            raise

    async def _renewed(self, endpoint: Endpoint, ask: Ask, challenges: Sequence[Challenge], header: str | None) -> str:
        try:
            return await self._tokens.renew(endpoint, challenges, rejected=header, what=ask.what)
        except AuthenticationError as error:
            error.hint = ask.hint or self._tokens.note(endpoint) or error.hint
            raise

    async def _send(self, endpoint: Endpoint, ask: Ask, header: str | None) -> Answer:
        return await self._wire.send(
            Outgoing(
                what=ask.what,
                url=ask.url_at(endpoint),
                method=ask.method,
                headers=ask.headers,
                authorization=header,
                insecure=endpoint.insecure,
            )
        )

    async def _refusal(self, endpoint: Endpoint, ask: Ask, answer: Answer) -> RegistryError:
        body = b""
        with suppress(RegistryError):  # the status alone says enough
            body = await answer.read(limit=_LARGEST_REFUSAL)
        who = answer.host if answer.foreign else endpoint.registry
        hint = ask.hint or self._tokens.note(endpoint)
        return refused(ask.what, who, answer.status, headers=answer.headers, body=body, hint=hint)

    def _has_spoken(self, endpoint: Endpoint, error: RegistryError | DigestMismatch) -> bool:
        """Note the failure; whether the server answered in the scheme it was asked in."""
        status = error.status if isinstance(error, RegistryError) else 200
        # 400 to plain http is what servers of TLS say to it.
        spoken = status is not None and not (status == 400 and endpoint.base_url.startswith("http:"))
        if not spoken:
            self._silent.add(endpoint.base_url)
        elif endpoint.mirror:
            self._unhelpful.add((endpoint.base_url, endpoint.repository))
        return spoken

    def _is_poor(self, endpoint: Endpoint) -> bool:
        return endpoint.base_url in self._silent or (endpoint.base_url, endpoint.repository) in self._unhelpful


def _worth_telling(
    endpoints: Sequence[Endpoint], failures: Mapping[Endpoint, RegistryError | DigestMismatch]
) -> RegistryError | DigestMismatch:
    """The failure to report: the registry's own, and an answer rather than silence."""
    ours = [failures[endpoint] for endpoint in endpoints if endpoint in failures and not endpoint.mirror]
    known = ours or list(failures.values())
    return next((error for error in known if not isinstance(error, RegistryError) or error.status), known[0])
