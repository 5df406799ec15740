"""What is sent for a container, made once for all of one configuration: only what depends on the id is filled in.

Invariant: a filled template is what would have been made for that id from the start.
"""

from __future__ import annotations

import json

from crungo.records import Record, replace
from crungo.runtime.cgroups import path_of
from crungo.runtime.check import check_config
from crungo.runtime.etc import etc_files
from crungo.runtime.names import SHORT, random_id
from crungo.runtime.spec import ContainerPlace, build_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crungo.config import ContainerConfig
    from crungo.image.imageconfig import ImageConfig
    from crungo.image.store import Image
    from crungo.runtime.host import HostFacts

__all__ = ["Template", "Templates"]

LIMIT = 16
"""Templates kept; each is some 20 KB."""


class Template(Record):
    """The specification's text, the files of /etc by name, and the OCI process object, for the id ``id``."""

    id: str
    spec: bytes
    files: dict[str, bytes]
    process: dict[str, Any]

    @classmethod
    def make(cls, config: ContainerConfig, image: ImageConfig | None, *, root: str, host: HostFacts) -> Template:
        """For containers below ``root``; errors as for :func:`build_spec`."""
        identifier = random_id()  # occurs nowhere else
        directory = f"{root}/containers/{identifier}"
        place = ContainerPlace(
            id=identifier, rootfs=f"{directory}/rootfs", directory=directory, cgroups_path=path_of(identifier)
        )
        spec = build_spec(config, image, place=place, host=host)
        files = etc_files(config, hostname=spec["hostname"], host=host)
        return cls(
            id=identifier,
            spec=json.dumps(spec).encode(),
            files={name: text.encode() for name, text in files.items()},
            process=spec["process"],
        )

    def fill(self, identifier: str) -> Template:
        """The same for another id."""
        return Template(
            id=identifier,
            spec=self._replace(self.spec, identifier),
            files={name: self._replace(content, identifier) for name, content in self.files.items()},
            process=self.process
            | {"env": [entry.replace(self.id[:SHORT], identifier[:SHORT]) for entry in self.process["env"]]},
        )

    def _replace(self, text: bytes, identifier: str) -> bytes:
        # The short form is that of a hostname, and the beginning of the long one.
        return text.replace(self.id.encode(), identifier.encode()).replace(
            self.id[:SHORT].encode(), identifier[:SHORT].encode()
        )


class Templates:
    """The templates of one engine, by configuration and image."""

    def __init__(self, root: str, host: HostFacts) -> None:
        self._root = root
        self._host = host
        self._kept: list[tuple[ContainerConfig, str | None, Template]] = []

    def check(self, config: ContainerConfig) -> None:
        """Raise for what is wrong with a configuration; see :func:`crungo.runtime.check.check_config`."""
        if not any(_are_equal(config, known) for known, _, _ in self._kept):
            check_config(config, self._host)

    def get(self, config: ContainerConfig, image: Image | None) -> Template:
        """The template of a configuration that was checked; errors as for :func:`build_spec`."""
        image_id = None if image is None else image.id
        for known, of_image, template in self._kept:
            if of_image == image_id and _are_equal(config, known):
                return template
        template = Template.make(config, image.config if image else None, root=self._root, host=self._host)
        if _is_settled(config):
            # Its mappings are the caller's, who may change them.
            own = replace(config, env=dict(config.env), labels=dict(config.labels), sysctls=dict(config.sysctls))
            self._kept = [(own, image_id, template), *self._kept[: LIMIT - 1]]
        return template


def _are_equal(config: ContainerConfig, known: ContainerConfig) -> bool:
    # What differs most often comes first: comparing two that differ in their last field takes twenty times as long.
    return config.command == known.command and config == known


def _is_settled(config: ContainerConfig) -> bool:
    """Whether nothing of the host's that may change has a part in the specification, or in what is checked."""
    return not (
        config.mounts or config.devices or config.privileged or config.init or config.rootfs or config.network == "host"
    )
