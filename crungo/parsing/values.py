"""The plain values: sizes, numbers, times, booleans; and the one form of the errors about them.

Invariant: text is matched in full, in ASCII, and bounded in length before it is converted, so that no digit string
is too long for ``int`` and no foreign digit slips through.

Patterns here and in the modules beside it are compiled when they are first used: a command line uses few of them.
"""

from __future__ import annotations

import re

from crungo.errors import UsageError, printable

__all__ = [
    "bad_value",
    "parse_bool",
    "parse_cpus",
    "parse_duration",
    "parse_int",
    "parse_memory",
    "parse_memory_swap",
    "parse_pids_limit",
    "parse_shm_size",
    "parse_size",
    "quote",
    "words",
]

MINIMUM_MEMORY = 6 << 20  # docker's: below it nothing starts
MAXIMUM = (1 << 63) - 1  # the kernel and libcrun keep sizes in signed 64 bits
MAXIMUM_CPUS = 8192  # NR_CPUS of the largest kernels
_SHOWN = 120  # characters of a value shown in an error

_SIZE = r"(?ai)([0-9]{1,19})(?:\.([0-9]{1,19}))? ?(?:([kmgtp])i?)?b?"
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_INT = r"[+-]?[0-9]{1,19}"
_CPUS = r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}"
_DURATION_PART = r"([0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ms|us|µs|ns|h|m|s)"
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


def quote(text: str) -> str:
    """``text`` in double quotes, on one line and of bounded length, fit for an error message."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f'"{printable(shown)}"'


def words(text: str) -> tuple[str, ...]:
    """The words of ``text``: long tables of names read better so than as one quoted string each."""
    return tuple(text.split())


def bad_value(flag: str, text: str, why: str) -> UsageError:
    """The error for a malformed value; ``why`` says what is wrong and what is expected."""
    return UsageError(f"invalid value {quote(text)} for {flag}: {why}")


def parse_bool(text: str, *, flag: str) -> bool:
    """The words that Go's ``strconv.ParseBool`` knows, which is what docker and podman accept."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise bad_value(flag, text, "not a boolean; expected true or false")


def parse_int(text: str, *, flag: str, minimum: int = 0, maximum: int = MAXIMUM) -> int:
    """A decimal whole number within bounds."""
    if not re.fullmatch(_INT, text):
        raise bad_value(flag, text, "not a whole number")
    value = int(text)
    if value < minimum:
        raise bad_value(flag, text, f"too small; the least is {minimum}")
    if value > maximum:
        raise bad_value(flag, text, f"too large; the most is {maximum}")
    return value


def parse_size(text: str, *, flag: str) -> int:
    """Bytes, from a number with an optional unit: b, k, m, g, t, p, either case, also as kb or KiB; powers of 1024.

    Fractions are exact and rounded down: ``1.5k`` is 1536.
    """
    found = re.fullmatch(_SIZE, text)
    if found is None:
        raise bad_value(flag, text, "not a size; expected a number with an optional unit b, k, m, g or t, such as 512m")
    whole, fraction, unit = found[1], found[2] or "", (found[3] or "").lower()
    value = (int(whole + fraction) << _UNITS[unit]) // int("1" + "0" * len(fraction))
    if value > MAXIMUM:
        raise bad_value(flag, text, "too large; the most is 8191p")
    return value


def parse_memory(text: str, *, flag: str = "--memory") -> int | None:
    """A memory limit in bytes, at least 6 MiB; ``None`` for 0, which is no limit."""
    value = parse_size(text, flag=flag)
    if value == 0:
        return None
    if value < MINIMUM_MEMORY:
        raise bad_value(flag, text, "too small; the least is 6m")
    return value


def parse_memory_swap(text: str, *, flag: str = "--memory-swap") -> int | None:
    """Memory plus swap in bytes; -1 for no limit on swap; ``None`` for 0, which is the default."""
    if text == "-1":
        return -1
    return parse_memory(text, flag=flag)


def parse_shm_size(text: str, *, flag: str = "--shm-size") -> int:
    """The size of /dev/shm in bytes, more than none."""
    value = parse_size(text, flag=flag)
    if value == 0:
        raise bad_value(flag, text, "too small; expected at least one byte")
    return value


def parse_cpus(text: str, *, flag: str = "--cpus") -> float | None:
    """A number of CPUs, at least 0.01 (the kernel's least quota is 1 ms of 100 ms); ``None`` for 0, no limit."""
    if not re.fullmatch(_CPUS, text):
        raise bad_value(flag, text, "not a number of CPUs; expected a decimal number, such as 0.5 or 2")
    value = float(text)
    if value == 0:
        return None
    if value < 0.01:
        raise bad_value(flag, text, "too small; the least is 0.01")
    if value > MAXIMUM_CPUS:
        raise bad_value(flag, text, f"too large; the most is {MAXIMUM_CPUS}")
    return value


def parse_pids_limit(text: str, *, flag: str = "--pids-limit") -> int | None:
    """A number of processes; ``None`` for -1 and 0, which are no limit."""
    value = parse_int(text, flag=flag, minimum=-1, maximum=1 << 22)  # PID_MAX_LIMIT of 64-bit kernels
    return value if value > 0 else None


def parse_duration(text: str, *, flag: str) -> float:
    """Seconds, from a plain number of them or from Go's form: ``1m30s``, ``500ms``, ``1.5h``."""
    if re.fullmatch(_CPUS, text):
        return float(text)
    seconds, position = 0.0, 0
    while position < len(text) <= 64:
        part = re.match(_DURATION_PART, text[position:])
        if part is None:
            break
        seconds += float(part[1]) * _SECONDS[part[2]]
        position += part.end()
    if position == 0 or position != len(text):
        raise bad_value(flag, text, "not a time; expected seconds or a form such as 1m30s or 500ms")
    return seconds
