"""The media types of images: which exist, which crungo takes, and why it refuses the others.

Sources: OCI image specification 1.1 (media-types.md, layer.md), docker's image manifest version 2 schema 2.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


__all__ = [
    "ACCEPT",
    "CONFIG_TYPES",
    "INDEX_TYPES",
    "LAYER_TYPES",
    "MANIFEST_TYPES",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "SCHEMA1_TYPES",
    "config_problem",
    "layer_problem",
]

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"

INDEX_TYPES: Final = frozenset({OCI_INDEX, _DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, _DOCKER_MANIFEST})
SCHEMA1_TYPES: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
CONFIG_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        "application/octet-stream",  # written by early docker versions, and still served for images of that time
    }
)
LAYER_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)

ACCEPT: Final = (OCI_INDEX, OCI_MANIFEST, _DOCKER_LIST, _DOCKER_MANIFEST)
"""What a manifest request accepts, in order of preference."""


def layer_problem(media_type: str) -> str | None:
    """Why a layer of this type cannot be unpacked, or ``None``."""
    if media_type in LAYER_TYPES:
        return None
    if "nondistributable" in media_type or ".foreign." in media_type:
        return "is foreign: it is not kept by the registry, but somewhere else"
    if media_type.endswith("+encrypted"):
        return "is encrypted"
    return f"is of the unknown type {media_type!a:.100}"


def config_problem(media_type: str) -> str | None:
    """Why a manifest whose configuration is of this type is not an image, or ``None``."""
    if media_type in CONFIG_TYPES:
        return None
    return f"is an artifact, not an image: its configuration is of the type {media_type!a:.100}"
