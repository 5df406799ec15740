"""Manifests and indexes, from the bytes of a registry to frozen values. Pure.

Sources: OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md) and docker's image manifest version 2
schema 2. Invariant: a ``Manifest`` describes an image that this store can hold: a configuration, and layers of types
that can be unpacked, each with a valid digest and one size.
"""

from __future__ import annotations

from crungo.errors import ImageError
from crungo.image import jsondoc
from crungo.image.digest import digest_problem
from crungo.image.mediatype import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1_TYPES,
    config_problem,
    layer_problem,
)
from crungo.image.platform import Platform
from crungo.records import Record, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from crungo.image.jsondoc import JsonObject

__all__ = ["CONFIG_LIMIT", "MANIFEST_LIMIT", "Descriptor", "Index", "Manifest", "parse_document"]

MANIFEST_LIMIT = 4 << 20  # bytes; what the distribution specification asks registries to take at least
CONFIG_LIMIT = 8 << 20
_BLOB_LIMIT = 1 << 50  # bytes; beyond any file system, and still far from what overflows an offset
_MOST_LAYERS = 500  # OVL_MAX_STACK of the kernel's overlay file system
_MOST_MANIFESTS = 2000


class Descriptor(Record):
    """A reference to content: its type, digest and size in bytes (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, compare=False)


class Manifest(Record):
    """One image for one platform: its configuration and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def size(self) -> int:
        """Bytes of configuration and layers as a registry sends them; what occurs twice counts once."""
        return sum({part.digest: part.size for part in (self.config, *self.layers)}.values())


class Index(Record):
    """Several images (or further indexes), to choose from by platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, compare=False)

    def best(self, platform: Platform, what: str) -> Descriptor:
        """The entry that suits the platform best; ``what`` names the image in errors.

        Entries of types that are no images are passed over; an entry that names no platform (a nested index, say) is
        taken where no other suits.

        Raises:
            ImageError: there is none; the hint lists what there is.
        """
        usable = [entry for entry in self.manifests if entry.media_type in INDEX_TYPES | MANIFEST_TYPES]
        position = platform.best(entry.platform for entry in usable)
        if position is not None:
            return usable[position]
        offered = sorted({str(entry.platform) for entry in usable if entry.platform and entry.platform.os != "unknown"})
        raise ImageError(
            f"{what}: there is no image for {platform.beside(entry.platform for entry in usable)}",
            hint=f"it exists for {', '.join(offered)[:500]}" if offered else None,
        )


def parse_document(body: bytes, media_type: str, what: str) -> Manifest | Index:
    """Read a manifest or an index.

    ``media_type`` is what the source says that it is (a Content-Type without parameters, or a descriptor's); where that
    is generic or empty, the document itself decides. ``what`` names the document in errors.

    Raises:
        ImageError: it is neither, breaks the specification, is of schema 1, an artifact, or has foreign layers.
    """
    parsed = jsondoc.document(body, what, limit=MANIFEST_LIMIT)
    kind = _kind(parsed, media_type, what)
    if kind in INDEX_TYPES:
        return _index(parsed, kind, what)
    return _manifest(parsed, kind, what)


def _kind(parsed: JsonObject, media_type: str, what: str) -> str:
    """The document's media type; where several sources name one, they must agree (CVE-2021-41190)."""
    inner = jsondoc.text(parsed, "mediaType", what)
    if parsed.get("schemaVersion") == 1 or {media_type, inner} & SCHEMA1_TYPES:
        raise ImageError(
            f"{what}: manifests of schema version 1 are not supported",
            hint="the image was pushed by a docker of before 2016; push it again with a current tool",
        )
    if parsed.get("schemaVersion") != 2:
        raise ImageError(f"{what}: neither an image manifest nor an index (its schemaVersion is not 2)")
    known = INDEX_TYPES | MANIFEST_TYPES
    if inner and inner not in known:
        raise ImageError(f"{what}: is of the unknown type {inner!a:.100}")
    if inner and media_type in known and inner != media_type:
        raise ImageError(f"{what}: sent as {media_type}, but says of itself that it is {inner}")
    has_manifests, has_layers = "manifests" in parsed, "layers" in parsed or "config" in parsed
    if has_manifests and has_layers:
        raise ImageError(f"{what}: is a manifest and an index at once")
    kind = inner or (media_type if media_type in known else OCI_INDEX if has_manifests else OCI_MANIFEST)
    if (kind in INDEX_TYPES and has_layers) or (kind in MANIFEST_TYPES and has_manifests):
        raise ImageError(f"{what}: its type is {kind}, its content is not")
    return kind


def _index(parsed: JsonObject, kind: str, what: str) -> Index:
    entries = jsondoc.items(parsed, "manifests", what)
    if len(entries) > _MOST_MANIFESTS:
        raise ImageError(f"{what}: lists {len(entries)} images, more than {_MOST_MANIFESTS}")
    return Index(
        media_type=kind,
        manifests=tuple(
            _descriptor(entry, f"{what}: manifests[{n}]", MANIFEST_LIMIT) for n, entry in enumerate(entries)
        ),
        annotations=jsondoc.text_map(parsed, "annotations", what),
    )


def _manifest(parsed: JsonObject, kind: str, what: str) -> Manifest:
    config = _descriptor(parsed.get("config"), f"{what}: config", CONFIG_LIMIT)
    if (problem := config_problem(config.media_type)) is not None:
        raise ImageError(f"{what}: {problem}")
    entries = jsondoc.items(parsed, "layers", what)
    if len(entries) > _MOST_LAYERS:
        raise ImageError(f"{what}: has {len(entries)} layers, more than the {_MOST_LAYERS} that overlay can stack")
    layers = tuple(_descriptor(entry, f"{what}: layers[{n}]", _BLOB_LIMIT) for n, entry in enumerate(entries))
    sizes: dict[str, int] = {}
    for number, layer in enumerate(layers):
        if (problem := layer_problem(layer.media_type)) is not None:
            raise ImageError(f"{what}: layer {number} {problem}")
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise ImageError(f"{what}: gives two sizes for the layer {layer.digest}")
    return Manifest(
        media_type=kind,
        config=config,
        layers=layers,
        annotations=jsondoc.text_map(parsed, "annotations", what),
    )


def _descriptor(value: object, what: str, limit: int) -> Descriptor:
    if not isinstance(value, dict):
        raise ImageError(f"{what}: is not a descriptor")
    digest = jsondoc.text(value, "digest", what)
    if (problem := digest_problem(digest)) is not None:
        raise ImageError(f"{what}: {problem}")
    platform = jsondoc.mapping(value, "platform", what)
    return Descriptor(
        media_type=jsondoc.text(value, "mediaType", what),
        digest=digest,
        size=jsondoc.integer(value, "size", what, most=limit),
        platform=_platform(platform, what) if platform else None,
        annotations=jsondoc.text_map(value, "annotations", what),
    )


def _platform(value: JsonObject, what: str) -> Platform:
    return Platform.of(
        jsondoc.text(value, "os", what),
        jsondoc.text(value, "architecture", what),
        jsondoc.text(value, "variant", what),
    )
