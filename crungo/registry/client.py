"""Talking to registries by the OCI distribution specification: manifests, blobs, tags, login.

Everything that comes back is bounded; manifests are checked against their digests, blobs are not (their receiver does
it while it streams). One client serves one event loop, asyncio's or trio's, and any number of tasks on it.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from crungo.errors import DigestMismatch, ImageError, RegistryError
from crungo.image.digest import algorithm_of, digest_of, is_digest
from crungo.records import Record
from crungo.registry.ahead import Ahead
from crungo.registry.authfiles import Credentials
from crungo.registry.blobs import BlobStream, open_stream, range_header
from crungo.registry.credentials import Credential, server_key
from crungo.registry.headers import media_type, next_page, said_digest
from crungo.registry.hostfiles import certificate_folders, load_hosts
from crungo.registry.retry import Backoff, RetryPolicy, silent
from crungo.registry.session import Ask, Session
from crungo.registry.taglist import LARGEST_PAGE, read_tags
from crungo.registry.tokens import FindCredential, Tokens
from crungo.registry.transport import import_streams
from crungo.registry.wire import Timeouts, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from crungo.image.reference import Reference
    from crungo.registry.answer import Answer
    from crungo.registry.hosts import Endpoint, Hosts
    from crungo.registry.retry import Tell

__all__ = ["BlobStream", "FetchedManifest", "ManifestHead", "RegistryClient"]

T = TypeVar("T")
LARGEST_MANIFEST = 4 << 20  # bytes; the distribution specification's recommended limit
_MOST_TAG_PAGES = 1000
_MOST_TAGS = 100_000
_TAGS_PER_PAGE = 1000
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_SCHEMA_1 = r"application/vnd\.docker\.distribution\.manifest\.v1\+(?:json|prettyjws)"
# What registries answer to a HEAD that they do not support. Not 400: so servers of TLS answer plain http.
_NO_HEAD = frozenset({405, 501})


class FetchedManifest(Record):
    """A manifest or index: its bytes, the ``Content-Type`` it came with, and the digest of the bytes."""

    body: bytes
    media_type: str
    digest: str


class ManifestHead(Record):
    """What a registry says about a manifest without sending it; ``size`` in bytes, None where it said none."""

    digest: str
    size: int | None
    media_type: str


class RegistryClient:
    """Reads from registries; an async context manager that owns its connections.

    ``hosts`` and ``certificates`` (folders of ``certs.d``) are read from the system's configuration where they are
    not given. ``credentials`` may be any object with ``find`` as ``Credentials`` has it. ``retry`` applies to
    requests; a blob whose body breaks off is the receiver's to go on with. ``ahead`` has connections that are under way
    already; they are the client's from the start of the block on.
    """

    def __init__(
        self,
        *,
        hosts: Hosts | None = None,
        credentials: Credentials | None = None,
        certificates: tuple[str, ...] | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        backoff: Callable[[RetryPolicy], Backoff] = lambda policy: Backoff(policy=policy),
        ahead: Ahead | None = None,
    ) -> None:
        self._hosts = hosts
        self._credentials = credentials
        self._certificates = certificates
        self._retry = retry or RetryPolicy()
        self._timeouts = timeouts or Timeouts()
        self._backoff = backoff
        self._ahead = ahead
        self._open: tuple[Hosts, Wire, Session] | None = None

    async def __aenter__(self) -> RegistryClient:
        hosts = self._hosts
        if hosts is None:
            hosts = await anyio.to_thread.run_sync(load_hosts)
        folders = certificate_folders() if self._certificates is None else self._certificates
        ahead, self._ahead = self._ahead or Ahead(), None
        wire = Wire(hosts=hosts, certificate_folders=folders, timeouts=self._timeouts, ahead=ahead)
        find: FindCredential = (self._credentials or Credentials()).find
        self._open = (hosts, wire, Session(wire, Tokens(wire, find)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            _, wire, _ = self._open
            self._open = None
            await wire.aclose()

    async def get_manifest(
        self, reference: Reference, *, digest_or_tag: str | None = None, tell: Tell = silent
    ) -> FetchedManifest:
        """The manifest or index of ``reference``, or another one of its repository (a digest out of an index).

        ``tell`` is told why it is asked for again, here and below.

        Raises:
            ImageNotFound: there is none.
            DigestMismatch: its bytes are not those of the digest.
            ImageError: it is of the obsolete schema 1.
            AuthenticationError, RegistryError: the registry refused, failed or could not be reached.
        """
        wanted = digest_or_tag or reference.digest or reference.tag or "latest"
        what = f"manifest {_named(reference, wanted)}"

        async def use(endpoint: Endpoint, answer: Answer) -> FetchedManifest:
            kind = media_type(answer.headers.get("content-type"))
            _refuse_schema_1(what, kind)
            body = await answer.read(limit=LARGEST_MANIFEST)
            await answer.aclose()
            said = said_digest(answer.headers.get("docker-content-digest"))
            return FetchedManifest(body=body, media_type=kind, digest=_verified(what, endpoint, body, wanted, said))

        ask = Ask(what=what, path=f"manifests/{wanted}", headers={"Accept": _ACCEPT}, tell=tell)
        return await self._fetch(reference, ask, use)

    async def head_manifest(
        self, reference: Reference, *, digest_or_tag: str | None = None, tell: Tell = silent
    ) -> ManifestHead | None:
        """What the registry says about a manifest; None where it does not support asking so.

        The digest is the registry's word, not verified.

        Raises:
            ImageNotFound: there is none.
            ImageError: it is of the obsolete schema 1.
            AuthenticationError, RegistryError: the registry refused, failed or could not be reached.
        """
        wanted = digest_or_tag or reference.digest or reference.tag or "latest"
        what = f"manifest {_named(reference, wanted)}"

        async def use(_endpoint: Endpoint, answer: Answer) -> ManifestHead | None:
            await answer.aclose()
            digest = said_digest(answer.headers.get("docker-content-digest"))
            if answer.status != 200 or digest is None:
                return None
            kind = media_type(answer.headers.get("content-type"))
            _refuse_schema_1(what, kind)
            return ManifestHead(digest=digest, size=answer.length, media_type=kind)

        accept = _NO_HEAD | {200}
        ask = Ask(
            what=what,
            path=f"manifests/{wanted}",
            method="HEAD",
            headers={"Accept": _ACCEPT},
            accept=accept,
            tell=tell,
        )
        return await self._fetch(reference, ask, use)

    async def prepare_blobs(self, reference: Reference, *, at_once: int) -> None:
        """Blobs will be asked for: have at hand what streams them, and connections for so many.

        Raises:
            RegistryError: the configuration blocks the registry.
        """
        hosts, wire, _ = self._opened()
        wire.connect_ahead(hosts.endpoints(reference)[0].base_url, at_once)
        await anyio.to_thread.run_sync(import_streams)

    @asynccontextmanager
    async def open_blob(
        self,
        reference: Reference,
        digest: str,
        *,
        start: int = 0,
        end: int | None = None,
        whole: bool = False,
        tell: Tell = silent,
    ) -> AsyncIterator[BlobStream]:
        """The bytes ``start`` up to, not including, ``end`` of a blob of the reference's repository.

        ``whole``: the registry is asked for all of it, and what is not wanted is thrown away.

        Raises:
            ImageNotFound: there is no such blob.
            AuthenticationError, RegistryError: the registry refused, failed or could not be reached; status 416: the
                blob is shorter than ``start``.
        """
        what = f"blob {digest} of {reference.registry}/{reference.repository}"
        headers = {} if whole else range_header(start, end)

        async def use(_endpoint: Endpoint, answer: Answer) -> BlobStream:
            return open_stream(answer, what, start=start, end=end)

        ask = Ask(
            what=what,
            path=f"blobs/{digest}",
            headers=headers,
            accept=frozenset({200, 206, 416}) if headers else frozenset({200}),
            streamed=True,
            tell=tell,
        )
        stream = await self._fetch(reference, ask, use)
        try:
            yield stream
        finally:
            await stream.aclose()

    async def tags(self, reference: Reference) -> list[str]:
        """All tags of the reference's repository, in the registry's order; mirrors are not asked.

        Raises:
            ImageNotFound: there is no such repository.
            AuthenticationError, RegistryError: the registry refused, failed, answered nonsense or could not be reached.
        """
        hosts, _, session = self._opened()
        what = f"tags of {reference.registry}/{reference.repository}"

        async def use(endpoint: Endpoint, answer: Answer) -> tuple[Endpoint, list[str], str | None]:
            body = await answer.read(limit=LARGEST_PAGE)
            await answer.aclose()
            following = next_page(answer.headers.lines("link"), base=answer.url)
            if following is not None and not following.startswith(f"{endpoint.base_url}/v2/"):
                raise RegistryError(f"{what}: {endpoint.registry}: the next page is on another server")
            return endpoint, read_tags(body, what=what, registry=endpoint.registry), following

        places = tuple(endpoint for endpoint in hosts.endpoints(reference) if not endpoint.mirror)
        ask = Ask(what=what, path=f"tags/list?n={_TAGS_PER_PAGE}")
        found: dict[str, None] = {}
        for _ in range(_MOST_TAG_PAGES):
            endpoint, page, following = await session.fetch(places, ask, use, backoff=self._backoff(self._retry))
            found.update(dict.fromkeys(page))
            if len(found) > _MOST_TAGS:
                raise RegistryError(f"{what}: {reference.registry}: there are more than {_MOST_TAGS}")
            if following is None:
                return list(found)
            if following == ask.url:
                break
            places, ask = (endpoint,), Ask(what=what, url=following)
        raise RegistryError(f"{what}: {reference.registry}: the list has no end")

    async def check_login(self, host: str, username: str, password: str) -> str | None:
        """Check credentials for ``host[:port]`` with the registry; returns the identity token to keep in their place,
        if the registry gives one.

        Raises:
            AuthenticationError: they were refused.
            RegistryError: the registry failed or could not be reached.
        """
        hosts, wire, _ = self._opened()
        registry = server_key(host)
        credential = Credential(username=username, password=password)

        async def find(_registry: str, _repository: str) -> Credential | None:
            return credential

        async def use(endpoint: Endpoint, answer: Answer) -> str | None:
            await answer.aclose()
            return tokens.identity_token(endpoint) or None

        tokens = Tokens(wire, find, offline=True)
        ask = Ask(what=f"login to {registry}", hint="check the user name and the password")
        places = hosts.login_endpoints(registry)
        return await Session(wire, tokens).fetch(places, ask, use, backoff=self._backoff(self._retry))

    async def _fetch(self, reference: Reference, ask: Ask, use: Callable[[Endpoint, Answer], Awaitable[T]]) -> T:
        hosts, _, session = self._opened()
        return await session.fetch(hosts.endpoints(reference), ask, use, backoff=self._backoff(self._retry))

    def _opened(self) -> tuple[Hosts, Wire, Session]:
        if self._open is None:
            raise RuntimeError("the registry client is not open: use it in an `async with` block")
        return self._open


def _named(reference: Reference, wanted: str) -> str:
    return f"{reference.registry}/{reference.repository}{'@' if is_digest(wanted) else ':'}{wanted}"


def _refuse_schema_1(what: str, kind: str) -> None:
    if re.fullmatch(_SCHEMA_1, kind):
        raise ImageError(
            f"{what}: docker's image format schema 1 is not supported (obsolete since 2016)",
            hint="push the image again with a current tool",
        )


def _verified(what: str, endpoint: Endpoint, body: bytes, wanted: str, said: str | None) -> str:
    """The digest of ``body``, by the algorithm of what was wanted."""
    expected = wanted if is_digest(wanted) else None
    for digest in (expected, said):
        if digest is not None and (found := digest_of(body, algorithm_of(digest))) != digest:
            raise DigestMismatch(f"{what}: {endpoint.registry} sent content of digest {found}, not {digest}")
    return expected or digest_of(body)
