"""A registry in the middle of a pull, for as long as a test wants it to be."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.image import Image

__all__ = ["Stalled"]


class Stalled:
    """It has one image, ``reference``, and sends no more than ``after`` bytes of each of its larger layers.

    ``asked`` is set when the first of them has been asked for; ``go_on`` lets the rest come.
    """

    def __init__(self, image: Image, *, after: int = 5000) -> None:
        self._registry = FakeRegistry()
        self._after = after
        self._image = image
        self.asked, self._end = threading.Event(), threading.Event()
        self._registry.faults = self._fault

    @property
    def address(self) -> str:
        return self._registry.address

    def go_on(self) -> None:
        self._end.set()

    def __enter__(self) -> Self:
        self._registry.__enter__()
        self.reference = self._registry.add(self._image)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on()
        self._registry.__exit__(kind, error, trace)

    def _fault(self, request: Request) -> Fault | None:
        if self._end.is_set() or len(self._registry.blobs.get(request.path.rpartition("/")[2], b"")) <= self._after:
            return None
        self.asked.set()
        return Fault(after=self._after, hold=self._end)
