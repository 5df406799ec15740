"""The authorizations of one registry client: obtained when a registry asks, kept, and renewed before they expire.

Invariant: for each endpoint and repository one renewal runs at a time, however many requests wait for it and share what
it brings, and an authorization is only ever sent to the endpoint that it was obtained for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from crungo.errors import AuthenticationError
from crungo.records import Record
from crungo.registry.credentials import Credential
from crungo.registry.wire import Outgoing, Wire

if TYPE_CHECKING:
    from crungo.registry.auth import Authorization, TokenFlow
    from crungo.registry.challenges import Challenge
    from crungo.registry.hosts import Endpoint

__all__ = ["FindCredential", "Tokens"]

FindCredential = Callable[[str, str], Awaitable[Credential | None]]
_LARGEST_ANSWER = 1 << 20  # bytes
_MARGIN = 10.0  # seconds before its end at which a token counts as expired; a tenth of its life, if that is less


class _Held(Record):
    authorization: Authorization
    challenges: Sequence[Challenge]
    expires: float | None  # by time.monotonic()


class Tokens:
    """``find`` looks up credentials by registry and repository; ``offline`` asks for identity tokens (login)."""

    def __init__(self, wire: Wire, find: FindCredential, *, offline: bool = False) -> None:
        self._wire = wire
        self._find = find
        self._offline = offline
        self._held: dict[tuple[str, str], _Held] = {}
        self._takers: dict[tuple[str, str], int] = {}  # requests that were given what is held
        self._locks: defaultdict[tuple[str, str], anyio.Lock] = defaultdict(anyio.Lock)
        self._notes: dict[str, str] = {}

    def identity_token(self, endpoint: Endpoint) -> str:
        """The identity token that came with the endpoint's authorization; empty where none did."""
        held = self._held.get(_key(endpoint))
        return held.authorization.identity_token if held else ""

    def note(self, endpoint: Endpoint) -> str | None:
        """Why no credentials were used for the endpoint's registry, where looking them up failed."""
        return self._notes.get(endpoint.registry)

    async def current(self, endpoint: Endpoint, what: str) -> str | None:
        """The header to send, renewed if it is about to expire; None as long as the endpoint has not asked for one."""
        held = self._held.get(_key(endpoint))
        if held is None:
            return None
        if held.expires is None or time.monotonic() < held.expires:
            return self._hand_out(endpoint)
        return await self.renew(endpoint, held.challenges, rejected=held.authorization.header, what=what)

    async def renew(
        self, endpoint: Endpoint, challenges: Sequence[Challenge], *, rejected: str | None, what: str
    ) -> str:
        """The header that answers ``challenges``; ``rejected`` is the one that was sent, or that has expired.

        Raises:
            AuthenticationError: credentials are missing or refused.
            RegistryError: the token server could not be reached, or failed.
        """
        key = _key(endpoint)
        async with self._locks[key]:
            held = self._held.get(key)
            if held is None or held.authorization.header == rejected:  # else somebody renewed it while we waited
                asked = time.monotonic()
                authorization = await self._authorize(endpoint, challenges, what)
                expires = None
                if authorization.lifetime is not None:
                    expires = asked + authorization.lifetime - min(_MARGIN, authorization.lifetime / 10)
                self._held[key] = _Held(authorization=authorization, challenges=tuple(challenges), expires=expires)
                self._takers[key] = 0
            return self._hand_out(endpoint)

    def is_shared(self, endpoint: Endpoint, header: str) -> bool:
        """Whether other requests were given this token too, and may have used it up: some are good for one alone."""
        held = self._held.get(_key(endpoint))
        alone = held is not None and held.authorization.header == header and self._takers[_key(endpoint)] == 1
        return header.startswith("Bearer ") and not alone

    async def unshared(self, endpoint: Endpoint, challenges: Sequence[Challenge], what: str) -> str:
        """A header for one request, which no other is given. Raises what :meth:`renew` does."""
        return (await self._authorize(endpoint, challenges, what)).header

    def _hand_out(self, endpoint: Endpoint) -> str:
        key = _key(endpoint)
        self._takers[key] += 1
        return self._held[key].authorization.header

    async def _authorize(self, endpoint: Endpoint, challenges: Sequence[Challenge], what: str) -> Authorization:
        from crungo.registry.auth import authorize, pull_scope  # only where a registry asks for it

        flow = authorize(
            challenges,
            what=what,
            registry=endpoint.registry,
            credential=await self._credential(endpoint),
            scopes=[pull_scope(endpoint.repository)] if endpoint.repository else [],
            plain_http=endpoint.base_url.startswith("http:"),
            insecure=endpoint.insecure,
            offline=self._offline,
        )
        return await self._converse(flow, endpoint, what)

    async def _credential(self, endpoint: Endpoint) -> Credential | None:
        try:
            return await self._find(endpoint.registry, endpoint.repository)
        except AuthenticationError as error:
            # A broken helper must not stand in the way of a public image; it is told if the registry wants more.
            self._notes[endpoint.registry] = error.message
            return None

    async def _converse(self, flow: TokenFlow, endpoint: Endpoint, what: str) -> Authorization:
        """Make the requests that ``flow`` asks for."""
        from crungo.registry.auth import TokenAnswer

        name = urlsplit(endpoint.base_url).hostname
        answer: TokenAnswer | None = None
        while True:
            try:
                request = next(flow) if answer is None else flow.send(answer)
            except StopIteration as stop:
                result: Authorization = stop.value
                return result
            received = await self._wire.send(
                Outgoing(
                    what=what,
                    url=request.url,
                    authorization=request.authorization,
                    form=request.form,
                    headers={"Accept": "application/json"},
                    insecure=endpoint.insecure and urlsplit(request.url).hostname == name,
                )
            )
            try:
                body = await received.read(limit=_LARGEST_ANSWER)
            finally:
                await received.aclose()
            answer = TokenAnswer(status=received.status, headers=received.headers, body=body)


def _key(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.base_url, endpoint.repository
