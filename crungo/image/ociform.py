"""The OCI form of docker's manifests: the same image, under the types that OCI tools look for. Pure.

skopeo and umoci find nothing but OCI manifests in an OCI image layout. A manifest of docker's is kept as it came, since
its digest is the image's; beside it lies this form of it, and ``index.json`` names that one.
"""

from __future__ import annotations

import json

from crungo.image.digest import digest_of
from crungo.image.manifest import Descriptor
from crungo.image.mediatype import OCI_MANIFEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from crungo.image.manifest import Manifest

__all__ = ["oci_form"]

_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_SUFFIXES: Final = {"gzip": "+gzip", "zstd": "+zstd"}


def oci_form(manifest: Manifest) -> tuple[Descriptor, bytes] | None:
    """The OCI manifest of the same image, and its descriptor; None when the manifest is one already."""
    if manifest.media_type == OCI_MANIFEST:
        return None
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _encoded(manifest.config, _CONFIG),
        "layers": [_encoded(layer, _layer_type(layer.media_type)) for layer in manifest.layers],
    }
    body = json.dumps(value, separators=(",", ":")).encode()
    return Descriptor(media_type=OCI_MANIFEST, digest=digest_of(body), size=len(body)), body


def _layer_type(media_type: str) -> str:
    return _LAYER + _SUFFIXES.get(media_type[-4:], "")


def _encoded(descriptor: Descriptor, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": descriptor.digest, "size": descriptor.size}
