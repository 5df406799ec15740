"""What a pull tells while it runs: frozen events, given to a plain callable on the event loop.

Per image: ``ImageResolved``, then per layer any number of ``LayerProgress`` (ten per second at most, and each change of
phase) and one ``LayerDone``, then ``ImageDone``. A pull that fails ends without the last; one that finds here what the
registry has gives nothing but the last. ``ImageRetry`` and ``LayerRetry`` come where something is asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from crungo.records import Record

if TYPE_CHECKING:
    from crungo.image.manifest import Descriptor
    from crungo.image.reference import Reference

__all__ = [
    "ImageDone",
    "ImageResolved",
    "ImageRetry",
    "LayerDone",
    "LayerProgress",
    "LayerRetry",
    "Phase",
    "Progress",
    "ProgressEvent",
    "Tracker",
]

Phase = Literal["waiting", "downloading", "extracting"]
_INTERVAL = 0.1  # seconds


class ImageResolved(Record):
    """The manifest is known: its digest, and the layers to be had, none twice. Sizes are in bytes."""

    reference: Reference
    digest: str
    layers: tuple[Descriptor, ...]


class ImageRetry(Record):
    """The manifest could not be had, and will be asked for again in ``wait`` seconds."""

    reference: Reference
    reason: str
    wait: float


class LayerProgress(Record):
    """Where a layer is: ``done`` of ``total`` bytes of its blob are here.

    ``waiting``: another process, or another pull, has it in hand, or its turn has not come. ``downloading``: bytes
    come, and are unpacked as they come. ``extracting``: all bytes are here.
    """

    digest: str
    phase: Phase
    done: int
    total: int


class LayerRetry(Record):
    """A download was refused or broke off, and will be continued in ``wait`` seconds."""

    digest: str
    reason: str
    wait: float


class LayerDone(Record):
    """A layer is complete and verified; ``cached`` says that it was already."""

    digest: str
    cached: bool


class ImageDone(Record):
    """The image is in the store; ``changed`` is False when it was before, the same."""

    reference: Reference
    digest: str
    changed: bool


ProgressEvent = ImageResolved | ImageRetry | LayerProgress | LayerRetry | LayerDone | ImageDone
Progress = Callable[[ProgressEvent], object]


class Tracker:
    """The progress of one layer, thinned out."""

    __slots__ = ("_digest", "_last", "_phase", "_send", "_total")

    def __init__(self, send: Progress | None, digest: str, total: int) -> None:
        self._send = send
        self._digest = digest
        self._total = total
        self._phase: Phase | None = None
        self._last = 0.0

    def at(self, phase: Phase, done: int) -> None:
        """Tell the phase and how many bytes are here, unless that was told a moment ago."""
        if self._send is None:
            return
        now = time.monotonic()
        if phase != self._phase or now - self._last >= _INTERVAL:
            self._phase, self._last = phase, now
            self._send(LayerProgress(digest=self._digest, phase=phase, done=done, total=self._total))

    def again(self, reason: str, wait: float) -> None:
        """Tell that the download was refused or broke off."""
        if self._send is not None:
            self._send(LayerRetry(digest=self._digest, reason=reason, wait=wait))

    def done(self, *, cached: bool) -> None:
        """Tell the end."""
        if self._send is not None:
            self._send(LayerDone(digest=self._digest, cached=cached))
