"""What ``crungo run`` says of an image that is here for another kind of machine.

A pull for another platform leaves its image under the name, and who names no platform runs what is here. That is
docker's way, and so is to warn: what comes otherwise is "exec format error", or, where the host emulates, a slow
program.
"""

from __future__ import annotations

import os

from crungo.image.platform import Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import ContainerConfig
    from crungo.image.imageconfig import ImageConfig

__all__ = ["warn_if_foreign"]


def warn_if_foreign(config: ContainerConfig, image: ImageConfig) -> None:
    """Say so where nobody has asked for the image's platform."""
    system = os.uname()
    here = Platform.of(system.sysname, system.machine)  # variants are not worth reading /proc/cpuinfo for
    meant = image.platform
    if config.platform is not None or not meant.architecture or meant.architecture == here.architecture:
        return
    from crungo.cli.messages import warn

    warn(f"image {config.image} is for {meant}, and this machine is {here}; --platform says which is meant")
