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
    from crungo.errors import CrungoError as CrungoError
    from crungo.process import Completed as Completed
    from crungo.process import Process as Process

__version__ = "0.1.0"

_PLACES = {
    "Completed": "crungo.process",
    "Container": "crungo.containers",
    "ContainerConfig": "crungo.config",
    "CrungoError": "crungo.errors",
    "Device": "crungo.config",
    "Engine": "crungo.engine",
    "ExecConfig": "crungo.config",
    "Mount": "crungo.config",
    "Process": "crungo.process",
    "Ulimit": "crungo.config",
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
