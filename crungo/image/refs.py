"""Names of images: one small file per name, and the ``index.json`` that is derived from them.

The records are the truth. ``index.json`` is written anew whenever they change, so that tools that know OCI image
layouts find the images under their canonical names (``org.opencontainers.image.ref.name``).

Invariant: files are written only while the store's lock is held; a damaged record is none, and ``damaged`` lists it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os

from crungo.errors import CrungoError, StoreError
from crungo.image import jsondoc
from crungo.image.digest import digest_problem
from crungo.image.layout import open_file, write_whole
from crungo.image.manifest import MANIFEST_LIMIT, Descriptor
from crungo.image.mediatype import OCI_INDEX
from crungo.image.platform import Platform
from crungo.image.reference import Reference
from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.image.jsondoc import JsonObject
    from crungo.image.layout import Layout

__all__ = ["RefRecord", "Refs", "stored_name"]

_LIMIT = 1 << 14  # bytes of a record
_LONGEST_NAME = 200
_NAME_ANNOTATION = "org.opencontainers.image.ref.name"


class RefRecord(Record):
    """What a name stands for.

    ``reference`` is None for an image that has lost its names. ``target`` is what the registry gave for the name (an
    index, or the manifest itself), ``manifest`` the image's own, ``image_id`` the digest of its configuration.
    ``platform`` is what was asked for when the manifest was chosen. ``listed`` is what ``index.json`` shows in the
    manifest's place, where that is not an OCI manifest.
    """

    reference: Reference | None
    target: Descriptor
    manifest: Descriptor
    image_id: str
    platform: Platform
    listed: Descriptor | None = None


def stored_name(reference: Reference) -> Reference:
    """The name under which a reference is kept: with a digest, the tag says nothing."""
    return reference.with_digest(reference.digest) if reference.digest is not None else reference


class Refs:
    """The names of one store."""

    __slots__ = ("_layout",)

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def get(self, reference: Reference) -> RefRecord | None:
        """The record of a name; None where there is none."""
        try:
            return self._read(_file_name(str(stored_name(reference))))
        except (FileNotFoundError, CrungoError):
            return None

    def all(self) -> list[RefRecord]:
        """All records, by file name; damaged ones are left out."""
        found = []
        for name in self._files():
            try:
                found.append(self._read(name))
            except (FileNotFoundError, CrungoError):
                continue
        return found

    def damaged(self) -> list[tuple[str, str]]:
        """Files that hold no valid record: path and what is wrong."""
        found = []
        for name in self._files():
            try:
                self._read(name)
            except FileNotFoundError:
                continue
            except CrungoError as error:
                found.append((f"{self._layout.refs}/{name}", error.message))
        return found

    def put(self, record: RefRecord) -> None:
        """Write or replace a record. The store's lock must be held."""
        value = {
            "reference": str(record.reference) if record.reference is not None else None,
            "target": _encoded(record.target),
            "manifest": _encoded(record.manifest),
            "image_id": record.image_id,
            "platform": str(record.platform),
            "listed": _encoded(record.listed) if record.listed is not None else None,
        }
        path = f"{self._layout.refs}/{_file_name(_key(record))}"
        write_whole(path, json.dumps(value).encode() + b"\n", temporary=self._layout.fresh("tmp"))

    def discard(self, record: RefRecord) -> None:
        """Remove a record, if it is there. The store's lock must be held."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._layout.refs}/{_file_name(_key(record))}")

    def write_index(self) -> None:
        """Derive ``index.json`` from the records. The store's lock must be held."""
        write_whole(self._layout.index, self.index(), temporary=self._layout.fresh("tmp"))

    def index(self) -> bytes:
        """What ``index.json`` should hold."""
        entries = [
            {
                **_encoded(record.listed or record.manifest),
                **({"annotations": {_NAME_ANNOTATION: str(record.reference)}} if record.reference is not None else {}),
            }
            for record in self.all()
        ]
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode() + b"\n"

    def _files(self) -> list[str]:
        try:
            return sorted(os.listdir(self._layout.refs))
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> RefRecord:
        what = f"store: record {name!a:.80}"
        fd = open_file(f"{self._layout.refs}/{name}")
        try:
            body = os.read(fd, _LIMIT + 1)
        finally:
            os.close(fd)
        value = jsondoc.document(body, what, limit=_LIMIT)
        reference = jsondoc.text(value, "reference", what)
        image_id = jsondoc.text(value, "image_id", what)
        if (problem := digest_problem(image_id)) is not None:
            raise StoreError(f"{what}: {problem}")
        record = RefRecord(
            reference=Reference.parse(reference) if reference else None,
            target=_descriptor(value, "target", what),
            manifest=_descriptor(value, "manifest", what),
            image_id=image_id,
            platform=Platform.of(*(jsondoc.text(value, "platform", what) + "//").split("/")[:3]),
            listed=_descriptor(value, "listed", what) if value.get("listed") is not None else None,
        )
        if _file_name(_key(record)) != name:
            raise StoreError(f"{what}: belongs to another name")
        return record


def _key(record: RefRecord) -> str:
    return str(record.reference) if record.reference is not None else f"@{record.manifest.digest}"


def _file_name(key: str) -> str:
    """A file name for a key: readable where it fits, unambiguous always."""
    # As urllib.parse.quote does it, which takes two milliseconds to import.
    name = "".join(c if c.isalnum() or c in "_.-~" else f"%{ord(c):02X}" for c in key)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:100]}~{hashlib.sha256(key.encode()).hexdigest()}"


def _encoded(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def _descriptor(value: JsonObject, key: str, what: str) -> Descriptor:
    inner = jsondoc.mapping(value, key, what)
    digest = jsondoc.text(inner, "digest", what)
    if (problem := digest_problem(digest)) is not None:
        raise StoreError(f"{what}: {problem}")
    return Descriptor(
        media_type=jsondoc.text(inner, "mediaType", what),
        digest=digest,
        size=jsondoc.integer(inner, "size", what, most=MANIFEST_LIMIT),
    )
