"""Modules of dependencies that few commands need, imported by those. Only for a command, whose process is its own."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["leave_for_later"]

_SELDOM = ("certifi", "idna")
"""Authorities, for when the host has none, with all that finds their file; and host names beyond ASCII."""


class _Later(ModuleType):
    """A module that is imported when somebody asks for something in it, and not for itself."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def leave_for_later() -> None:
    """To be called before anything of httpx's is imported, which imports these at once: 5 ms of a pull."""
    for name in _SELDOM:
        sys.modules.setdefault(name, _Later(name))
