"""Containers for async Python: parallel pulls, real terminals, no daemon, nothing left behind.

    import crungo

    async with crungo.Engine() as engine:
        result = await engine.run("alpine", ["echo", "hello"])
        print(result.stdout)

Names are imported when they are first used, so that ``import crungo`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import ContainerConfig as ContainerConfig
    from crungo.config import Device as Device
    from crungo.config import ExecConfig as ExecConfig
    from crungo.config import Mount as Mount
    from crungo.config import Ulimit as Ulimit
    from crungo.containers import Container as Container
    from crungo.engine import Engine as Engine
    from crungo.errors import AuthenticationError as AuthenticationError
    from crungo.errors import CommandFailed as CommandFailed
    from crungo.errors import CommandNotExecutable as CommandNotExecutable
    from crungo.errors import CommandNotFound as CommandNotFound
    from crungo.errors import ConfigurationError as ConfigurationError
    from crungo.errors import ContainerError as ContainerError
    from crungo.errors import CrungoError as CrungoError
    from crungo.errors import DigestMismatch as DigestMismatch
    from crungo.errors import FileError as FileError
    from crungo.errors import HostError as HostError
    from crungo.errors import ImageError as ImageError
    from crungo.errors import ImageInUse as ImageInUse
    from crungo.errors import ImageNotFound as ImageNotFound
    from crungo.errors import ImageNotKnown as ImageNotKnown
    from crungo.errors import InvalidReference as InvalidReference
    from crungo.errors import LayerError as LayerError
    from crungo.errors import LibcrunError as LibcrunError
    from crungo.errors import NameInUse as NameInUse
    from crungo.errors import NoSuchContainer as NoSuchContainer
    from crungo.errors import NotRunning as NotRunning
    from crungo.errors import RegistryError as RegistryError
    from crungo.errors import SpawnerDied as SpawnerDied
    from crungo.errors import StoreError as StoreError
    from crungo.errors import UsageError as UsageError
    from crungo.image.reference import Reference as Reference
    from crungo.image.store import Image as Image
    from crungo.image.store import Removal as Removal
    from crungo.io.output import Output as Output
    from crungo.pool import Pool as Pool
    from crungo.process import Completed as Completed
    from crungo.process import Process as Process
    from crungo.registry.progress import ImageDone as ImageDone
    from crungo.registry.progress import ImageResolved as ImageResolved
    from crungo.registry.progress import ImageRetry as ImageRetry
    from crungo.registry.progress import LayerDone as LayerDone
    from crungo.registry.progress import LayerProgress as LayerProgress
    from crungo.registry.progress import LayerRetry as LayerRetry
    from crungo.registry.progress import Progress as Progress
    from crungo.registry.progress import ProgressEvent as ProgressEvent
    from crungo.registry.pull import PullLimits as PullLimits
    from crungo.registry.retry import RetryPolicy as RetryPolicy
    from crungo.runtime.stats import Stats as Stats
    from crungo.shortcuts import configure as configure
    from crungo.shortcuts import container as container
    from crungo.shortcuts import run as run

__version__ = "0.1.0"

_PLACES = {
    "AuthenticationError": "crungo.errors",
    "CommandFailed": "crungo.errors",
    "CommandNotExecutable": "crungo.errors",
    "CommandNotFound": "crungo.errors",
    "Completed": "crungo.process",
    "ConfigurationError": "crungo.errors",
    "Container": "crungo.containers",
    "ContainerConfig": "crungo.config",
    "ContainerError": "crungo.errors",
    "CrungoError": "crungo.errors",
    "Device": "crungo.config",
    "DigestMismatch": "crungo.errors",
    "Engine": "crungo.engine",
    "ExecConfig": "crungo.config",
    "FileError": "crungo.errors",
    "HostError": "crungo.errors",
    "Image": "crungo.image.store",
    "ImageDone": "crungo.registry.progress",
    "ImageError": "crungo.errors",
    "ImageInUse": "crungo.errors",
    "ImageNotFound": "crungo.errors",
    "ImageNotKnown": "crungo.errors",
    "ImageResolved": "crungo.registry.progress",
    "ImageRetry": "crungo.registry.progress",
    "InvalidReference": "crungo.errors",
    "LayerDone": "crungo.registry.progress",
    "LayerError": "crungo.errors",
    "LayerProgress": "crungo.registry.progress",
    "LayerRetry": "crungo.registry.progress",
    "LibcrunError": "crungo.errors",
    "Mount": "crungo.config",
    "NameInUse": "crungo.errors",
    "NoSuchContainer": "crungo.errors",
    "NotRunning": "crungo.errors",
    "Output": "crungo.io.output",
    "Pool": "crungo.pool",
    "Process": "crungo.process",
    "Progress": "crungo.registry.progress",
    "ProgressEvent": "crungo.registry.progress",
    "PullLimits": "crungo.registry.pull",
    "Reference": "crungo.image.reference",
    "RegistryError": "crungo.errors",
    "Removal": "crungo.image.store",
    "RetryPolicy": "crungo.registry.retry",
    "SpawnerDied": "crungo.errors",
    "Stats": "crungo.runtime.stats",
    "StoreError": "crungo.errors",
    "Ulimit": "crungo.config",
    "UsageError": "crungo.errors",
    "configure": "crungo.shortcuts",
    "container": "crungo.shortcuts",
    "run": "crungo.shortcuts",
}

__all__ = [  # noqa: PLE0604 - the names of the table, each found by __getattr__
    *_PLACES,
    "__version__",
]


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
