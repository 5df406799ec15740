"""A small real image, made from Debian's static busybox: layers, configuration, manifest, and how to push them.

Only the standard library is used, so that what the tests compare crungo with shares no code with it. An ``Image``
is a value: bytes by digest. The busybox image has three layers, the second of which removes a file and replaces a
directory of the first, as layers of real images do.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

__all__ = ["Image", "Layer", "busybox_image", "busybox_layers", "make_image", "push", "push_index", "write_layout"]

Flavour = Literal["oci", "docker"]
Compression = Literal["gzip", "zstd", "none"]

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
MEDIA_TYPES = {
    "oci": {
        "index": "application/vnd.oci.image.index.v1+json",
        "manifest": "application/vnd.oci.image.manifest.v1+json",
        "config": "application/vnd.oci.image.config.v1+json",
        "layer": "application/vnd.oci.image.layer.v1.tar",
    },
    "docker": {
        "index": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifest": "application/vnd.docker.distribution.manifest.v2+json",
        "config": "application/vnd.docker.container.image.v1+json",
        "layer": "application/vnd.docker.image.rootfs.diff.tar",
    },
}
DEFAULT_CONFIG: Mapping[str, Any] = {
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "IMAGE=busybox"],
    "Cmd": ["sh"],
}
TIME = 1_700_000_000  # the mtime of every entry: the same content gives the same digests


class Layer:
    """A tar archive under construction; names are relative to the root of the image."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - ends in data()

    def entry(self, name: str, kind: bytes, mode: int, *, data: bytes = b"", **fields: Any) -> Layer:
        """Any entry; ``fields`` are attributes of ``tarfile.TarInfo`` (uid, linkname, devmajor, pax_headers, …)."""
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime, info.size = kind, mode, TIME, len(data)
        for attribute, value in fields.items():
            setattr(info, attribute, value)
        self._tar.addfile(info, io.BytesIO(data) if data else None)
        return self

    def directory(self, name: str, mode: int = 0o755, **fields: Any) -> Layer:
        return self.entry(name, tarfile.DIRTYPE, mode, **fields)

    def file(self, name: str, data: bytes | str = b"", mode: int = 0o644, **fields: Any) -> Layer:
        return self.entry(name, tarfile.REGTYPE, mode, data=data.encode() if isinstance(data, str) else data, **fields)

    def symlink(self, name: str, target: str, **fields: Any) -> Layer:
        return self.entry(name, tarfile.SYMTYPE, 0o777, linkname=target, **fields)

    def hardlink(self, name: str, target: str, mode: int = 0o644, **fields: Any) -> Layer:
        return self.entry(name, tarfile.LNKTYPE, mode, linkname=target, **fields)

    def whiteout(self, name: str) -> Layer:
        """Remove ``name`` of the layers below."""
        folder, _, base = name.rpartition("/")
        return self.file(f"{folder}/.wh.{base}" if folder else f".wh.{base}")

    def opaque(self, name: str) -> Layer:
        """Hide all that the layers below have in the directory ``name``."""
        return self.file(f"{name}/.wh..wh..opq")

    def data(self) -> bytes:
        """The archive; the layer ends with this."""
        self._tar.close()
        return self._buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image at rest: ``blobs`` by digest (configuration and layers), and its manifest's bytes and media type."""

    manifest: bytes
    media_type: str
    blobs: Mapping[str, bytes] = field(repr=False)
    architecture: str

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def document(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.manifest)
        return loaded


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def make_image(
    layers: Iterable[Layer | bytes],
    *,
    config: Mapping[str, Any] | None = None,
    flavour: Flavour = "oci",
    compression: Compression = "gzip",
    architecture: str | None = None,
    change_manifest: Callable[[dict[str, Any]], None] | None = None,
    change_config: Callable[[dict[str, Any]], None] | None = None,
) -> Image:
    """An image of these layers (lowest first; archives as bytes may be anything at all).

    ``config`` is the inner configuration (Env, Cmd, User, …). The two ``change_`` functions edit the documents in
    place before they are written, for images that lie; ``architecture`` is this machine's unless given.
    """
    types = MEDIA_TYPES[flavour]
    architecture = architecture or ARCHITECTURES[platform.machine()]
    blobs: dict[str, bytes] = {}
    diff_ids: list[str] = []
    descriptors: list[dict[str, Any]] = []
    for layer in layers:
        archive = layer.data() if isinstance(layer, Layer) else layer
        packed, suffix = compress(archive, compression, flavour)
        diff_ids.append(sha256(archive))
        descriptors.append(_descriptor(types["layer"] + suffix, packed, blobs))
    document: dict[str, Any] = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": architecture,
        "os": "linux",
        "config": dict(DEFAULT_CONFIG if config is None else config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    if change_config:
        change_config(document)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": types["manifest"],
        "config": _descriptor(types["config"], json.dumps(document).encode(), blobs),
        "layers": descriptors,
    }
    if change_manifest:
        change_manifest(manifest)
    return Image(
        manifest=json.dumps(manifest).encode(), media_type=types["manifest"], blobs=blobs, architecture=architecture
    )


def compress(archive: bytes, compression: Compression, flavour: Flavour) -> tuple[bytes, str]:
    """The layer as it travels, and the suffix of its media type."""
    if compression == "none":
        return archive, ""
    if compression == "gzip":
        return gzip.compress(archive, compresslevel=3, mtime=0), "+gzip" if flavour == "oci" else ".gzip"
    import zstandard  # only here: the demo makes its image without it

    return zstandard.compress(archive), "+zstd" if flavour == "oci" else ".zstd"


def _descriptor(media_type: str, data: bytes, blobs: dict[str, bytes]) -> dict[str, Any]:
    digest = sha256(data)
    blobs[digest] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def busybox_image(busybox: Path, *extra: Layer, **options: Any) -> Image:
    """The busybox image, further layers on top; ``options`` are those of ``make_image``."""
    return make_image([*busybox_layers(busybox), *(layer.data() for layer in extra)], **options)


@cache
def busybox_layers(busybox: Path) -> tuple[bytes, ...]:
    """Three layers: the system; a user, and removals from the system; a program on top."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    base = Layer()
    for name in ("bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "usr/bin", "usr/share", "usr/share/doc"):
        base.directory(name)
    base.directory("root", 0o700).directory("tmp", 0o1777).directory("var").directory("var/tmp", 0o1777).directory(
        "usr/local/bin"
    )
    base.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in sorted({*applets} - {"busybox"}):
        base.symlink(f"bin/{applet}", "busybox")
    base.symlink("usr/bin/env", "../../bin/busybox")
    base.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n")
    base.file("etc/group", "root:x:0:\ndaemon:x:1:\n")
    base.file("etc/motd", "removed by the next layer\n")
    base.file("usr/share/doc/old", "hidden by the next layer\n")

    user = Layer()
    user.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "app:x:1000:1000:An application:/home/app:/bin/sh\n",
    )
    user.file("etc/group", "root:x:0:\ndaemon:x:1:\nstaff:x:50:app\nvideo:x:44:app\napp:x:1000:\n")
    user.directory("home/app", 0o750, uid=1000, gid=1000)
    user.file("home/app/.profile", "PS1='app$ '\n", uid=1000, gid=1000)
    user.whiteout("etc/motd")
    user.directory("usr/share/doc").opaque("usr/share/doc").file("usr/share/doc/new", "here to stay\n")

    program = Layer()
    program.file("usr/local/bin/hello", "#!/bin/sh\necho hello world\n", 0o755)
    program.hardlink("usr/local/bin/greet", "usr/local/bin/hello", mode=0o755)
    program.file("usr/local/bin/not-a-program", "no interpreter line, no ELF header\n", 0o755)
    program.file("usr/local/bin/no-permission", "#!/bin/sh\n", 0o644)
    return base.data(), user.data(), program.data()


def push(image: Image, address: str, name: str, tag: str = "latest") -> str:
    """Push to a registry that speaks plain HTTP at ``address`` (host:port); returns the reference."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        for digest, data in image.blobs.items():
            _push_blob(connection, name, digest, data)
        _push_manifest(connection, name, tag, image.manifest, image.media_type)
    finally:
        connection.close()
    return f"{address}/{name}:{tag}"


def push_index(images: Iterable[Image], address: str, name: str, tag: str, flavour: Flavour = "oci") -> str:
    """Push images of several platforms under one name; returns the reference."""
    manifests = []
    for image in images:
        push(image, address, name, f"{tag}-{image.architecture}")
        manifests.append(
            {
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": {"os": "linux", "architecture": image.architecture},
            }
        )
    media_type = MEDIA_TYPES[flavour]["index"]
    index = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode()
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        _push_manifest(connection, name, tag, index, media_type)
    finally:
        connection.close()
    return f"{address}/{name}:{tag}"


def _push_blob(connection: http.client.HTTPConnection, name: str, digest: str, data: bytes) -> None:
    if _request(connection, "HEAD", f"/v2/{name}/blobs/{digest}", expected=(200, 404))[0] == 200:
        return
    location = _request(connection, "POST", f"/v2/{name}/blobs/uploads/", expected=(202,))[1]
    joint = "&" if "?" in location else "?"
    path = location.split("//", 1)[-1]
    path = path[path.index("/") :] if "//" in location else path
    headers = {"Content-Type": "application/octet-stream"}
    _request(connection, "PUT", f"{path}{joint}digest={digest}", data, headers, expected=(201,))


def _push_manifest(connection: http.client.HTTPConnection, name: str, tag: str, data: bytes, media_type: str) -> None:
    path = f"/v2/{name}/manifests/{tag}"
    _request(connection, "PUT", path, data, {"Content-Type": media_type}, expected=(201,))


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    expected: tuple[int, ...],
) -> tuple[int, str]:
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    text = response.read()
    if response.status not in expected:
        raise RuntimeError(f"{method} {path}: {response.status} {text.decode(errors='replace')}")
    return response.status, response.getheader("Location", "")


def write_layout(image: Image, folder: Path, tag: str = "latest") -> None:
    """Write an OCI image layout that holds this image under this tag."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, data in {**image.blobs, image.digest: image.manifest}.items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    descriptor = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
