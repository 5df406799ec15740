"""``--filter`` of images: which of the store's images a list or a prune is about.

Conditions of one kind: for ``reference`` any may hold, of all others every one must. Invariant: nothing here reads the
store but for the images that ``before`` and ``since`` name.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from crungo.errors import UsageError
from crungo.parsing.values import bad_value, parse_bool, parse_duration, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from crungo.image.reference import Reference
    from crungo.image.store import Image

    Test = Callable[[Image], bool]

__all__ = ["Selection", "parse_until", "select"]

_FLAG = "--filter"
_OLDEST = datetime.min.replace(tzinfo=UTC)


class Selection:
    """Which images, and which of their names."""

    def __init__(self, tests: Sequence[Test], patterns: Sequence[str]) -> None:
        self._tests = tests
        self._whole = frozenset(patterns)
        self._patterns = [re.compile(_glob(pattern)) for pattern in patterns]

    def names(self, image: Image) -> tuple[Reference, ...] | None:
        """The names of an image that are asked for; None where the image itself is not."""
        if not all(test(image) for test in self._tests):
            return None
        if not self._patterns:
            return image.references
        return tuple(name for name in image.references if self._matches(name)) or None

    def has(self, image: Image) -> bool:
        """Whether the image is one of those."""
        return self.names(image) is not None

    def _matches(self, name: Reference) -> bool:
        # Stars are for names as they are shown; the canonical spelling is good for being named in full.
        if not self._whole.isdisjoint((str(name), name.name)):
            return True
        return any(
            pattern.fullmatch(text) for pattern in self._patterns for text in (name.familiar, name.familiar_name)
        )


def select(
    filters: Iterable[str],
    *,
    find: Callable[[str], Image],
    allowed: Sequence[str] = ("dangling", "reference", "before", "since", "label", "until"),
    patterns: Iterable[str] = (),
    now: datetime | None = None,
) -> Selection:
    """The selection of ``key=value`` texts. ``find`` gets the image of a name; ``patterns`` are further references.

    Raises:
        UsageError: a filter is unknown or malformed.
        ImageNotKnown: ``before`` or ``since`` name no image.
    """
    now = now or datetime.now(UTC)
    tests: list[Test] = []
    references = list(patterns)
    for text in filters:
        key, equals, value = text.partition("=")
        negated = key == "label!"
        key = "label" if negated else key
        if not equals or key not in allowed:
            raise bad_value(_FLAG, text, f"expected key=value with a key of {', '.join(allowed)}")
        if key == "reference":
            references.append(value)
        else:
            tests.append(_test(key, value, find=find, negated=negated, now=now))
    return Selection(tests, references)


def _test(key: str, value: str, *, find: Callable[[str], Image], negated: bool, now: datetime) -> Test:
    if key == "dangling":
        wanted = parse_bool(value, flag=f"dangling in {_FLAG}")
        return lambda image: (not image.references) is wanted
    if key == "label":
        name, equals, text = value.partition("=")

        def labelled(image: Image) -> bool:
            there = name in image.config.labels and (not equals or image.config.labels[name] == text)
            return there is not negated

        return labelled
    if key == "until":
        latest = parse_until(value, now)
        return lambda image: _created(image) < latest
    other = find(value)
    if key == "before":
        return lambda image: _created(image) < _created(other)
    return lambda image: _created(image) > _created(other)


def parse_until(text: str, now: datetime) -> datetime:
    """A moment: Unix seconds, a date with or without a time, or how long before ``now`` (``24h``, ``10m``)."""
    try:
        if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", text):
            return datetime.fromtimestamp(float(text), UTC)
        if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            moment = datetime.fromisoformat(text)
            return moment if moment.tzinfo else moment.astimezone()
        return now - timedelta(seconds=parse_duration(text, flag=f"until in {_FLAG}"))
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"until in {_FLAG}: {quote(text)} is neither a time nor a duration, such as 24h") from None


def _created(image: Image) -> datetime:
    return image.created or _OLDEST


def _glob(pattern: str) -> str:
    """Go's path.Match as a regular expression: a star stops at a slash.

    Raises:
        UsageError: a bracket is not closed, or a class is none.
    """
    parts: list[str] = []
    rest = pattern
    while rest:
        if (group := re.match(r"\[(\^?)((?:\\.|[^\]\\])+)\]", rest)) is not None:
            inside = re.sub(r"(?<!\\)([\[&~|])", r"\\\1", group[2])
            parts.append(f"[{group[1]}{inside}]")
            rest = rest[group.end() :]
            continue
        if rest[0] == "[":
            raise UsageError(f"reference pattern {quote(pattern)}: a bracket is not closed")
        literal = rest[1] if rest[0] == "\\" and len(rest) > 1 else rest[0]
        taken = 2 if rest[0] == "\\" and len(rest) > 1 else 1
        wild = {"*": "[^/]*", "?": "[^/]"}.get(rest[:taken])
        parts.append(wild or re.escape(literal))
        rest = rest[taken:]
    try:
        re.compile("".join(parts))
    except re.error:
        raise UsageError(f"reference pattern {quote(pattern)}: malformed") from None
    return "".join(parts)
