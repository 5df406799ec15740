"""The image configuration: what a container of the image is started with, and what its layers unpack to. Pure.

Source: OCI image specification 1.1 (config.md); docker's differs in fields that are not used here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from crungo.errors import ImageError
from crungo.image import jsondoc
from crungo.image.digest import algorithm_of, digest_problem
from crungo.image.manifest import CONFIG_LIMIT, Manifest
from crungo.image.platform import Platform
from crungo.records import Record, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from crungo.image.jsondoc import JsonObject

__all__ = ["HistoryEntry", "ImageConfig", "parse_time"]

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")  # fromisoformat takes more forms than RFC 3339 has


class HistoryEntry(Record):
    """How one layer (or, where ``empty_layer`` is set, only the configuration) came to be."""

    created: datetime | None
    created_by: str
    comment: str
    empty_layer: bool


class ImageConfig(Record):
    """What an image says about itself. Absent fields are empty.

    ``env`` holds ``NAME=value`` texts as they stand (``environment`` reads them); ``exposed_ports`` ``80/tcp``;
    ``volumes`` paths; ``healthcheck`` docker's object as it is, or ``None``; ``diff_ids`` the digests of the layers'
    tar archives, lowest first.
    """

    architecture: str = ""
    os: str = ""
    variant: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: Mapping[str, Any] | None = None
    shell: tuple[str, ...] = ()
    diff_ids: tuple[str, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    created: datetime | None = None
    author: str = ""

    @property
    def platform(self) -> Platform:
        """The platform that the image is for, in canonical spelling; parts that it does not name are empty."""
        return Platform.of(self.os, self.architecture, self.variant)

    def suits(self, platform: Platform) -> bool:
        """Whether the image is for ``platform``, or does not say what it is for."""
        return not (self.os or self.architecture) or platform.accepts(self.platform) is not None

    @property
    def environment(self) -> dict[str, str]:
        """The environment as a mapping; of a name that occurs twice, the last value counts, as in docker."""
        pairs = (entry.partition("=") for entry in self.env)
        return {name: value for name, _, value in pairs if name}

    @classmethod
    def parse(cls, body: bytes, what: str) -> ImageConfig:
        """Read a configuration; ``what`` names it in errors.

        Raises:
            ImageError: it breaks the specification.
        """
        parsed = jsondoc.document(body, what, limit=CONFIG_LIMIT)
        inner = jsondoc.mapping(parsed, "config", what)
        healthcheck = jsondoc.mapping(inner, "Healthcheck", what)
        return cls(
            architecture=jsondoc.text(parsed, "architecture", what),
            os=jsondoc.text(parsed, "os", what),
            variant=jsondoc.text(parsed, "variant", what),
            entrypoint=_command(inner, "Entrypoint", what),
            cmd=_command(inner, "Cmd", what),
            env=jsondoc.strings(inner, "Env", what),
            working_dir=jsondoc.text(inner, "WorkingDir", what),
            user=jsondoc.text(inner, "User", what),
            stop_signal=jsondoc.text(inner, "StopSignal", what),
            labels=jsondoc.text_map(inner, "Labels", what),
            exposed_ports=tuple(jsondoc.mapping(inner, "ExposedPorts", what)),
            volumes=tuple(jsondoc.mapping(inner, "Volumes", what)),
            healthcheck=healthcheck or None,
            shell=_command(inner, "Shell", what),
            diff_ids=_diff_ids(parsed, what),
            history=tuple(_history(entry, what) for entry in jsondoc.items(parsed, "history", what)),
            created=parse_time(jsondoc.text(parsed, "created", what, lenient=True)),
            author=jsondoc.text(parsed, "author", what, lenient=True),
        )

    def check_against(self, manifest: Manifest, what: str) -> None:
        """Refuse a configuration that does not belong to the manifest.

        Raises:
            ImageError: the number of layers differs.
        """
        if len(self.diff_ids) != len(manifest.layers):
            raise ImageError(
                f"{what}: its manifest has {len(manifest.layers)} layers, its configuration {len(self.diff_ids)}"
            )


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time, or ``None`` where the text is none (a wrong date is no reason to refuse an image)."""
    if not _TIME.match(text):
        return None
    try:
        time = datetime.fromisoformat(text[:64])
        time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        time.astimezone(UTC)
    except (ValueError, OverflowError):  # in UTC it may be before the year 1, or after 9999
        return None
    return time


def _command(parent: JsonObject, key: str, what: str) -> tuple[str, ...]:
    """An array of strings; early images have a bare string instead."""
    if isinstance(parent.get(key), str):
        return (jsondoc.text(parent, key, what),)
    return jsondoc.strings(parent, key, what)


def _diff_ids(parsed: JsonObject, what: str) -> tuple[str, ...]:
    rootfs = jsondoc.mapping(parsed, "rootfs", what)
    if jsondoc.text(rootfs, "type", what) not in ("", "layers"):
        raise ImageError(f"{what}: its rootfs is not made of layers")
    diff_ids = jsondoc.strings(rootfs, "diff_ids", what)
    for diff_id in diff_ids:
        problem = digest_problem(diff_id)
        if problem is None and algorithm_of(diff_id) != "sha256":
            problem = "only sha256 is supported for diff ids"
        if problem is not None:
            raise ImageError(f"{what}: diff_ids: {problem}")
    return diff_ids


def _history(value: object, what: str) -> HistoryEntry:
    if not isinstance(value, dict):
        raise ImageError(f"{what}: 'history' holds something that is not an object")
    return HistoryEntry(
        created=parse_time(jsondoc.text(value, "created", what, lenient=True)),
        created_by=jsondoc.text(value, "created_by", what, lenient=True),
        comment=jsondoc.text(value, "comment", what, lenient=True),
        empty_layer=value.get("empty_layer") is True,
    )
