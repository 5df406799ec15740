"""What is known of running pulls, and how it looks: lines of text of a given width. Pure; the clock is given.

Invariant: no line is as wide as the screen, and there are fewer lines than it has rows, so that drawing them never
makes the terminal wrap or scroll.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from crungo.cli.human import size
from crungo.records import Record, field
from crungo.registry.progress import ImageDone, ImageResolved, ImageRetry, LayerDone, LayerProgress, LayerRetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crungo.registry.progress import ProgressEvent

__all__ = ["Layer", "Pull", "Rate", "closing_lines", "live_lines", "plain_line"]

_WINDOW = 5.0  # seconds that a rate is the mean of
_LEAST_TIME = 1.0  # seconds to watch before a rate is said
_BAR, _LEAST_BAR = 40, 10
_WORDS = {"waiting": "Waiting", "downloading": "Downloading", "extracting": "Extracting"}


class Rate:
    """Bytes per second, over the last few seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> None:
        """At this moment there were so many."""
        self._samples.append((now, total))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW:
            self._samples.popleft()

    def at(self, now: float) -> float | None:
        """The rate; it falls while nothing comes. None as long as it cannot be told."""
        if not self._samples or now - self._samples[0][0] < _LEAST_TIME:
            return None
        (start, first), (_, last) = self._samples[0], self._samples[-1]
        return (last - first) / (now - start)


class Layer(Record, frozen=False, kw_only=False):
    """One layer: where it is, and what became of it (``outcome``, empty as long as it is under way)."""

    digest: str
    size: int
    phase: str = "waiting"
    done: int = 0
    note: str = ""
    outcome: str = ""
    cached: bool = False
    rate: Rate = field(default_factory=Rate)

    @property
    def name(self) -> str:
        """The short digest."""
        return self.digest.partition(":")[2][:12]


class Pull(Record, frozen=False, kw_only=False):
    """One image on its way. ``received`` counts bytes that came from the registry since it began; ``note`` is why there
    is no manifest yet."""

    title: str = ""
    note: str = ""
    layers: dict[str, Layer] = field(default_factory=dict)
    received: int = 0
    finished: bool = False
    rate: Rate = field(default_factory=Rate)

    def take(self, event: ProgressEvent, now: float) -> None:
        """Learn of an event."""
        if isinstance(event, ImageResolved):
            name = event.reference
            self.title, self.note = f"{name.tag or name.target}: Pulling from {name.familiar_name}", ""
            for descriptor in event.layers:
                self._layer(descriptor.digest).size = descriptor.size
        elif isinstance(event, ImageRetry):
            self.note = f"{event.reference.familiar_name}: {_retrying(event)}"
        elif isinstance(event, LayerProgress):
            self._progress(self._layer(event.digest), event, now)
        elif isinstance(event, LayerRetry):
            self._layer(event.digest).note = _retrying(event)
        elif isinstance(event, LayerDone):
            layer = self._layer(event.digest)
            if layer.phase == "downloading":
                self.received += max(0, layer.size - layer.done)
            layer.done, layer.cached, layer.note = layer.size, event.cached, ""
            layer.outcome = "Already exists" if event.cached else "Pull complete"
        elif isinstance(event, ImageDone):
            self.finished = True
        self.rate.add(now, self.received)

    def _layer(self, digest: str) -> Layer:
        return self.layers.setdefault(digest, Layer(digest, 0))

    def _progress(self, layer: Layer, event: LayerProgress, now: float) -> None:
        # What a download begins with was here before: it is no progress of this pull.
        if layer.phase == "downloading":
            self.received += max(0, event.done - layer.done)
        layer.phase, layer.done, layer.size, layer.note = event.phase, event.done, event.total, ""
        if event.phase == "downloading":
            layer.rate.add(now, event.done)


def closing_lines(pull: Pull, columns: int) -> list[str]:
    """What stays on the screen of a pull that is over."""
    if not pull.layers:
        return []
    lines = [pull.title] if pull.title else []
    lines += [f"{layer.name}: {layer.outcome or _WORDS[layer.phase]}" for layer in pull.layers.values()]
    return [line[: columns - 1] for line in lines]


def live_lines(pulls: Sequence[Pull], columns: int, rows: int, now: float) -> list[str]:
    """The display: a line for each layer, as far as they fit, those under way first; and the sum of all."""
    running = [pull for pull in pulls if pull.layers and not pull.finished]
    lines = [pull.note for pull in pulls if pull.note and not pull.finished]
    if not running or rows < 2:
        return [line[: columns - 1] for line in lines[: max(0, rows - 1)]]
    room = rows - 2  # the sum, and the row that the cursor rests on
    wanted = len(lines) + sum(len(pull.layers) + bool(pull.title) for pull in running)
    for pull in running:
        layers = list(pull.layers.values())
        if wanted > room:
            layers = [layer for layer in layers if not layer.outcome and layer.phase != "waiting"]
        lines += [pull.title] if pull.title else []
        lines += [_layer_line(layer, columns, now) for layer in layers]
    return [line[: columns - 1] for line in (*lines[:room], _sum_line(running, columns, now))]


def plain_line(pull: Pull, event: ProgressEvent) -> str | None:
    """The news of an event where there is no screen; None where it is none."""
    if isinstance(event, ImageResolved):
        return pull.title
    if isinstance(event, ImageRetry):
        return pull.note
    if isinstance(event, LayerDone):
        layer = pull.layers[event.digest]
        return f"{layer.name}: {layer.outcome}"
    if isinstance(event, LayerRetry):
        layer = pull.layers[event.digest]
        return f"{layer.name}: {layer.note}"
    return None


def _layer_line(layer: Layer, columns: int, now: float) -> str:
    head = f"{layer.name}: "
    if layer.outcome or layer.phase == "waiting":
        return head + (layer.outcome or _WORDS["waiting"])
    if layer.note:
        return head + layer.note
    head += f"{_WORDS[layer.phase]:<11} "
    amount = f"{size(layer.done)}/{size(layer.size)}"
    rate = layer.rate.at(now) if layer.phase == "downloading" else None
    tail = (f" {amount:>15}", f"  {size(rate)}/s" if rate is not None else "")
    # The bar leaves room for a rate that is not known yet: its length shall not change with every digit.
    width = min(_BAR, columns - len(head) - 16 - 10 - 3)
    return _fitting(columns, head + (_bar(layer.done, layer.size, width) if width >= _LEAST_BAR else ""), *tail)


def _fitting(columns: int, *parts: str) -> str:
    """As many of the parts, from the first on, as there is room for."""
    line = ""
    for part in parts:
        if line and len(line) + len(part) >= columns:
            break
        line += part
    return line


def _bar(done: int, total: int, width: int) -> str:
    full = width * min(done, total) // total if total else width
    arrow = "=" * (full - 1) + ">" if 0 < full < width else "=" * full
    return f"[{arrow:<{width}}]"


def _sum_line(pulls: Sequence[Pull], columns: int, now: float) -> str:
    layers = [layer for pull in pulls for layer in pull.layers.values()]
    fresh = [layer for layer in layers if not layer.cached]
    total, done = sum(layer.size for layer in fresh), sum(layer.done for layer in fresh)
    ended = sum(bool(layer.outcome) for layer in layers)
    parts = [f"Total: {size(done)}/{size(total)}", f", {ended}/{len(layers)} layers"]
    rates = [rate for pull in pulls if (rate := pull.rate.at(now)) is not None]
    rate = sum(rates)
    if rates and done < total:
        parts.append(f", {size(rate)}/s")
        if rate >= 1:
            parts.append(f", {_clock((total - done) / rate)} left")
    return _fitting(columns, *parts)


def _clock(seconds: float) -> str:
    whole = min(int(seconds) + 1, 359_999)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def _retrying(event: ImageRetry | LayerRetry) -> str:
    """The time first: the reason may be longer than the screen is wide."""
    return f"Retrying{f' in {_clock(event.wait - 0.5)}' if event.wait >= 1 else ''}: {_one_line(event.reason)}"


def _one_line(text: str) -> str:
    """What a registry or the system said, so that its width on the screen is its length."""
    return "".join(c if c.isprintable() else " " for c in text.encode("ascii", "replace").decode())
