"""From a reference to one image for one platform: its manifest and, which takes another round trip, its configuration.

Invariant: what is returned fits together: every document has the digest and size by which the one before it named it,
the configuration belongs to the manifest, and nothing has been written anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.errors import DigestMismatch, ImageError, RegistryError
from crungo.image.digest import algorithm_of, digest_of
from crungo.image.imageconfig import ImageConfig
from crungo.image.manifest import CONFIG_LIMIT, Descriptor, Index, Manifest, parse_document
from crungo.records import Record
from crungo.registry.retry import Backoff, silent

if TYPE_CHECKING:
    from crungo.image.platform import Platform
    from crungo.image.reference import Reference
    from crungo.registry.client import FetchedManifest, RegistryClient
    from crungo.registry.retry import RetryPolicy, Tell

__all__ = ["Resolved", "fetch_config", "resolve"]

_DEEPEST = 4  # indexes within indexes


class Resolved(Record):
    """An image as a registry describes it.

    ``target`` is what the reference names (an index, or the manifest itself); ``bodies`` are the small documents that
    were fetched, by their digests.
    """

    target: Descriptor
    manifest_descriptor: Descriptor
    manifest: Manifest
    bodies: dict[str, bytes]

    @property
    def digests(self) -> set[str]:
        """Digests of all blobs."""
        layers = {layer.digest for layer in self.manifest.layers}
        return {self.manifest.config.digest, *self.bodies, *layers}


async def resolve(client: RegistryClient, reference: Reference, platform: Platform, *, tell: Tell = silent) -> Resolved:
    """Fetch the image's manifest, and the indexes that lead to it. ``tell`` is told why one is asked for again.

    Raises:
        ImageNotFound, AuthenticationError, RegistryError: as ``RegistryClient.get_manifest``.
        ImageError, DigestMismatch: it is malformed, of an unsupported kind, not for this platform, or not of the size
            that its index says.
    """
    what = _what(reference)
    target: Descriptor | None = None
    bodies: dict[str, bytes] = {}
    wanted: Descriptor | None = None
    for _ in range(_DEEPEST):
        fetched = await client.get_manifest(reference, digest_or_tag=wanted.digest if wanted else None, tell=tell)
        if wanted is not None and len(fetched.body) != wanted.size:
            raise DigestMismatch(f"{what}: {wanted.digest} has {len(fetched.body)} bytes, its index says {wanted.size}")
        if fetched.digest in bodies:
            raise ImageError(f"{what}: its index leads back to itself")
        document = parse_document(fetched.body, fetched.media_type, what)
        here = _described(fetched, document)
        target = target or here
        bodies[here.digest] = fetched.body
        if isinstance(document, Manifest):
            return Resolved(target=target, manifest_descriptor=here, manifest=document, bodies=bodies)
        wanted = document.best(platform, what)
    raise ImageError(f"{what}: indexes are nested more than {_DEEPEST} deep")


async def fetch_config(
    client: RegistryClient,
    reference: Reference,
    manifest: Manifest,
    platform: Platform,
    *,
    explicit: bool,
    retry: RetryPolicy,
) -> tuple[ImageConfig, bytes]:
    """Fetch the configuration of a manifest: what it says, and its bytes.

    ``explicit``: the platform was asked for, and is not just that of this machine.

    Raises:
        ImageNotFound, AuthenticationError, RegistryError: as ``RegistryClient.open_blob``.
        ImageError, DigestMismatch: it is malformed, not what the manifest names, or not for this platform.
    """
    what = _what(reference)
    body = await _body(client, reference, manifest.config, what, retry)
    config = ImageConfig.parse(body, f"{what}: configuration")
    config.check_against(manifest, what)
    _check_platform(config, platform, what, explicit=explicit)
    return config, body


def _what(reference: Reference) -> str:
    return f"image {reference.familiar}"


def _described(fetched: FetchedManifest, document: Manifest | Index) -> Descriptor:
    return Descriptor(media_type=document.media_type, digest=fetched.digest, size=len(fetched.body))


async def _body(
    client: RegistryClient, reference: Reference, descriptor: Descriptor, what: str, retry: RetryPolicy
) -> bytes:
    """The configuration, whole and verified."""
    if descriptor.size > CONFIG_LIMIT:
        raise ImageError(f"{what}: its configuration is larger than {CONFIG_LIMIT} bytes")
    backoff = Backoff(policy=retry)
    mismatch: DigestMismatch | None = None
    while True:
        body = bytearray()
        try:
            async with client.open_blob(reference, descriptor.digest) as stream:
                async for chunk in stream.chunks():
                    body += chunk
                    if len(body) > descriptor.size:
                        raise DigestMismatch(f"{what}: its configuration is larger than the manifest says")
        except RegistryError as error:
            await backoff.again(error)
            continue
        whole = bytes(body)
        if digest_of(whole, algorithm_of(descriptor.digest)) == descriptor.digest and len(whole) == descriptor.size:
            return whole
        if mismatch is not None:
            raise mismatch
        # Once more: it may have been damaged on its way.
        mismatch = DigestMismatch(f"{what}: its configuration is not what its digest {descriptor.digest} says")


def _check_platform(config: ImageConfig, platform: Platform, what: str, *, explicit: bool) -> None:
    if not config.suits(platform):  # one that does not say what it is for does: what the index said of it was enough
        raise ImageError(
            f"{what}: it is for {config.platform}, not for {platform.beside([config.platform])}",
            hint=f"ask for it with --platform {config.platform}" if not explicit else None,
        )
