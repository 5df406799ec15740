"""Asking the places that hold an image, one after the other, until one gives what was asked for.

A round asks every place that may still help: mirrors in their order, then the registry. When all have failed and some
failures may pass by themselves, the next round, after a wait, asks those again.

Invariant: an answer is either handed to ``use``, which owns it from then on unless it raises, or closed.
"""

from __future__ import annotations

import ssl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from crungo.errors import AuthenticationError, DigestMismatch, RegistryError
from crungo.records import Record, field
from crungo.registry.failures import refused
from crungo.registry.retry import Backoff, chain, is_alert, is_transient, silent
from crungo.registry.wire import Outgoing, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from crungo.registry.answer import Answer
    from crungo.registry.challenges import Challenge
    from crungo.registry.hosts import Endpoint
    from crungo.registry.retry import Tell
    from crungo.registry.tokens import Tokens

__all__ = ["Ask", "Session"]

T = TypeVar("T")
_LARGEST_REFUSAL = 64 << 10  # bytes of an error's body


class Ask(Record):
    """A request to any of several endpoints: ``path`` below ``/v2/<repository>/``, or a whole ``url``.

    ``what`` names the thing asked for in messages; ``accept`` are the statuses to hand on; ``streamed`` is as of
    ``Outgoing``; ``hint`` is for a refusal; ``tell`` is told why it is asked for again.
    """

    what: str
    path: str = ""
    url: str | None = None
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    accept: frozenset[int] = frozenset({200})
    streamed: bool = False
    hint: str | None = None
    tell: Tell = silent

    def url_at(self, endpoint: Endpoint) -> str:
        """The address to ask at ``endpoint``."""
        below = f"{endpoint.repository}/{self.path}" if endpoint.repository else self.path
        return self.url or f"{endpoint.base_url}/v2/{below}"


class Session:
    """Remembers which places failed, and asks them last from then on."""

    def __init__(self, wire: Wire, tokens: Tokens) -> None:
        self._wire = wire
        self._tokens = tokens
        self._silent: set[str] = set()  # base URLs where the last request got no answer
        self._unhelpful: set[tuple[str, str]] = set()  # base URL of a mirror, and a repository that it does not have

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
        places = self._ordered(endpoints)
        while True:
            answered: set[tuple[str, str]] = set()
            for endpoint in places:
                if (endpoint.registry, endpoint.repository) in answered:
                    continue  # another scheme of a server that has spoken
                try:
                    result = await self._ask(endpoint, ask, use)
                except (RegistryError, DigestMismatch) as error:
                    failures[endpoint] = error
                    self._note(endpoint, error)
                    if self._wire.has_answered(endpoint.base_url):
                        answered.add((endpoint.registry, endpoint.repository))
                else:
                    self._silent.discard(endpoint.base_url)
                    return result
            transient = _worth_asking_again(places, failures)
            reported = _worth_telling(endpoints, failures)
            if not transient:
                raise reported
            passing = failures[transient[-1]]
            assert isinstance(passing, RegistryError)
            try:
                await backoff.again(passing, tell=ask.tell)
            except RegistryError:
                if isinstance(reported, RegistryError):
                    reported.retried = True  # who receives a blob has tries of its own, and would multiply these
                raise reported from reported.__cause__
            places = transient

    async def _ask(self, endpoint: Endpoint, ask: Ask, use: Callable[[Endpoint, Answer], Awaitable[T]]) -> T:
        header = await self._tokens.current(endpoint, ask.what)
        answer = await self._send(endpoint, ask, header)
        try:
            if challenges := _challenges(answer):
                await answer.aclose()
                with self._hinting(endpoint, ask):
                    header = await self._tokens.renew(endpoint, challenges, rejected=header, what=ask.what)
                answer = await self._send(endpoint, ask, header)
                if self._tokens.is_shared(endpoint, header) and (challenges := _challenges(answer)):
                    await answer.aclose()
                    with self._hinting(endpoint, ask):
                        header = await self._tokens.unshared(endpoint, challenges, ask.what)
                    answer = await self._send(endpoint, ask, header)
            if answer.status not in ask.accept:
                raise await self._refusal(endpoint, ask, answer)
            return await use(endpoint, answer)
        except BaseException:
            await answer.aclose()
            raise

    @contextmanager
    def _hinting(self, endpoint: Endpoint, ask: Ask) -> Iterator[None]:
        try:
            yield
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
                streamed=ask.streamed,
            )
        )

    async def _refusal(self, endpoint: Endpoint, ask: Ask, answer: Answer) -> RegistryError:
        body = b""
        with suppress(RegistryError):  # the status alone says enough
            body = await answer.read(limit=_LARGEST_REFUSAL)
        who, hint = endpoint.registry, ask.hint or self._tokens.note(endpoint)
        if answer.foreign:  # where nobody can log in
            who, hint = answer.host, f"{endpoint.registry} has redirected there"
        return refused(ask.what, who, answer.status, headers=answer.headers, body=body, hint=hint)

    def _note(self, endpoint: Endpoint, error: RegistryError | DigestMismatch) -> None:
        if isinstance(error, RegistryError) and error.status is None:
            self._silent.add(endpoint.base_url)
        elif endpoint.mirror:
            self._unhelpful.add((endpoint.base_url, endpoint.repository))

    def _ordered(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """The configured order, but what failed before comes last; of a server that has answered, that scheme alone."""
        answering = [place for place in endpoints if self._wire.has_answered(place.base_url)]
        known = {(place.registry, place.repository) for place in answering}
        places = [place for place in endpoints if place in answering or (place.registry, place.repository) not in known]
        return sorted(places, key=self._is_poor)

    def _is_poor(self, endpoint: Endpoint) -> bool:
        return endpoint.base_url in self._silent or (endpoint.base_url, endpoint.repository) in self._unhelpful


def _challenges(answer: Answer) -> list[Challenge]:
    """What the registry itself wants to know; nothing where it has accepted or refused, or another host does."""
    if answer.status != 401 or answer.foreign:
        return []
    from crungo.registry.challenges import parse_challenges

    return parse_challenges(answer.headers.lines("www-authenticate"))


Failures: TypeAlias = "Mapping[Endpoint, RegistryError | DigestMismatch]"


def _is_conclusive(place: Endpoint, error: RegistryError | DigestMismatch) -> bool:
    """Whether the failure shows that the server speaks the scheme that it was asked in."""
    if isinstance(error, RegistryError) and error.status == 400 and place.base_url.startswith("http:"):
        return False  # what servers of TLS say to plain http
    spoken = not isinstance(error, RegistryError) or error.status is not None or error.__cause__ is None
    return spoken or any(isinstance(link, ssl.SSLCertVerificationError) or is_alert(link) for link in chain(error))


def _worth_asking_again(places: Sequence[Endpoint], failures: Failures) -> list[Endpoint]:
    """The places whose failure may pass; not those of a server that has turned out to speak the other scheme."""
    failed = [(place, failures[place]) for place in places if place in failures]
    spoken = {(place.registry, place.repository) for place, error in failed if _is_conclusive(place, error)}
    return [
        place
        for place, error in failed
        if is_transient(error) and (_is_conclusive(place, error) or (place.registry, place.repository) not in spoken)
    ]


def _worth_telling(endpoints: Sequence[Endpoint], failures: Failures) -> RegistryError | DigestMismatch:
    """The failure to report: the registry's own, and an answer rather than silence."""
    known = [(endpoint, failures[endpoint]) for endpoint in endpoints if endpoint in failures]
    ours = [(endpoint, error) for endpoint, error in known if not endpoint.mirror] or known
    return next((error for endpoint, error in ours if _is_conclusive(endpoint, error)), ours[0][1])
