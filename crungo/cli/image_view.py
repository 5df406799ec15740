"""An image as ``docker image inspect`` shows it. Pure.

Absent lists and maps are ``null`` in JSON and ``[]`` and ``map[]`` in templates, as in docker.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, ClassVar

from crungo.cli.templates import NIL_LIST, NIL_MAP, Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from crungo.image.imageconfig import ImageConfig
    from crungo.image.store import Image

__all__ = ["image_view"]


class _ImageRecord(Record):
    aliases: ClassVar[Mapping[str, str]] = {"ID": "Id"}  # as docker's and podman's own templates have it


def image_view(image: Image) -> Record:
    """The fields, with docker's names and types; ``Digest`` is podman's: what the registry gave for the name."""
    config = image.config
    repositories = dict.fromkeys(f"{name.familiar_name}@{name.digest or image.target}" for name in image.references)
    return _ImageRecord(
        Id=image.id,
        RepoTags=[name.familiar for name in image.references if name.digest is None],
        RepoDigests=list(repositories),
        Digest=image.target,
        Parent="",
        Comment=config.history[-1].comment if config.history else "",
        Created=_rfc3339(image.created),
        DockerVersion="",
        Author=config.author,
        Config=_config_view(config),
        Architecture=config.architecture,
        Variant=config.variant,
        Os=config.os,
        Size=image.size,
        GraphDriver=Record(Name="overlay", Data=_overlay(image.layers)),
        RootFS=Record(Type="layers", Layers=list(config.diff_ids)),
    )


def _config_view(config: ImageConfig) -> Record:
    return Record(
        User=config.user,
        ExposedPorts=_set(config.exposed_ports),
        Env=list(config.env) or NIL_LIST,
        Cmd=list(config.cmd) or NIL_LIST,
        Healthcheck=dict(config.healthcheck) if config.healthcheck else None,
        Volumes=_set(config.volumes),
        WorkingDir=config.working_dir,
        Entrypoint=list(config.entrypoint) or NIL_LIST,
        OnBuild=NIL_LIST,
        Labels=dict(config.labels) or NIL_MAP,
        StopSignal=config.stop_signal,
        Shell=list(config.shell) or NIL_LIST,
    )


def _set(names: tuple[str, ...]) -> Any:
    return {name: Record() for name in names} or NIL_MAP


def _overlay(layers: tuple[str, ...]) -> Record:
    """The directories of the layers, in overlay's order: the uppermost first."""
    data = Record(UpperDir=layers[-1] if layers else "")
    data["LowerDir"] = ":".join(reversed(layers[:-1]))
    return data


def _rfc3339(time: datetime | None) -> str:
    return "0001-01-01T00:00:00Z" if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")
