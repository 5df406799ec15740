"""Sizes, ages and times in docker's words. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["ago", "count", "duration", "moment", "size"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def size(number: float, *, digits: int = 3) -> str:
    """Bytes in powers of 1000, with so many significant digits: ``12.3MB``, ``999kB``, ``0B``."""
    unit = 0
    # Rounding may lift a number to the next unit: 999,950 bytes are 1MB, not 1e+03kB.
    while unit + 1 < len(_UNITS) and float(f"{number:.{digits}g}") >= 1000:
        number /= 1000
        unit += 1
    return f"{float(f'{number:.{digits}g}'):.{digits}g}{_UNITS[unit]}"


def count(number: int, what: str) -> str:
    """So many of a thing whose plural takes an s: ``1 image``, ``2 images``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """About how long: ``2 weeks``, ``About an hour``."""
    hours = int(seconds / _HOUR + 0.5)
    steps = (
        (seconds < 1, "Less than a second"),
        (seconds < 2, "1 second"),
        (seconds < _MINUTE, f"{int(seconds)} seconds"),
        (seconds < 2 * _MINUTE, "About a minute"),
        (seconds < _HOUR, f"{int(seconds / _MINUTE)} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 7 * 2, f"{hours // 24} days"),
        (hours < 24 * 30 * 2, f"{hours // 24 // 7} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 24 // 30} months"),
    )
    return next((words for holds, words in steps if holds), f"{int(seconds / _DAY) // 365} years")


def ago(time: datetime | None, now: float) -> str:
    """How long before ``now`` (seconds since the epoch) something was: ``2 weeks ago``; ``N/A`` where unknown."""
    return "N/A" if time is None else f"{duration(max(0.0, now - time.timestamp()))} ago"


def moment(time: datetime | None) -> str:
    """A time in the local zone: ``2023-11-14 22:13:20 +0000 UTC``."""
    if time is None:
        return "N/A"
    try:
        return time.astimezone().strftime("%Y-%m-%d %H:%M:%S %z %Z")
    except (OverflowError, ValueError, OSError):  # the years 1 and 9999 have no neighbours to be shifted to
        return time.isoformat(" ", "seconds")
