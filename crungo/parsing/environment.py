"""``--env``, ``--env-file``, ``--label`` and ``--label-file``: pairs of names and values.

Invariant: a name is never empty and holds neither ``=`` nor NUL; a value holds no NUL.
"""

from __future__ import annotations

from crungo.errors import UsageError
from crungo.parsing.values import bad_value, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_env", "parse_env_file", "parse_label", "parse_label_file"]


def parse_env(text: str, environ: Mapping[str, str], *, flag: str = "--env") -> tuple[str, str | None]:
    """``X=Y``, or ``X`` for the caller's own value; ``None`` where the caller has none: X is to be unset."""
    name, equals, value = text.partition("=")
    if not name:
        raise bad_value(flag, text, "no variable name; expected NAME=value or NAME")
    if "\0" in text:
        raise bad_value(flag, text, "holds a NUL character")
    return name, value if equals else environ.get(name)


def parse_env_file(data: bytes, environ: Mapping[str, str], *, path: str, flag: str = "--env-file") -> dict[str, str]:
    """docker's env file: one ``NAME=value`` or ``NAME`` per line, ``#`` comments, values kept as they are.

    A bare name takes the caller's value and is skipped where there is none. Errors name file and line.
    """
    pairs: dict[str, str] = {}
    for number, line in _lines(data, path, flag):
        name, equals, value = line.partition("=")
        if any(c.isspace() for c in name):
            raise _bad_line(flag, path, number, f"variable {quote(name)} contains whitespace")
        if not name:
            raise _bad_line(flag, path, number, "no variable name; expected NAME=value or NAME")
        if equals:
            pairs[name] = value
        elif (inherited := environ.get(name)) is not None:
            pairs[name] = inherited
    return pairs


def parse_label(text: str, *, flag: str = "--label") -> tuple[str, str]:
    """``key=value``, or ``key`` for an empty value."""
    key, _, value = text.partition("=")
    if not key:
        raise bad_value(flag, text, "no label name; expected key=value or key")
    if "\0" in text:
        raise bad_value(flag, text, "holds a NUL character")
    return key, value


def parse_label_file(data: bytes, *, path: str, flag: str = "--label-file") -> dict[str, str]:
    """One ``key=value`` or ``key`` per line, ``#`` comments. Errors name file and line."""
    labels: dict[str, str] = {}
    for number, line in _lines(data, path, flag):
        key, _, value = line.partition("=")
        if not key or any(c.isspace() for c in key):
            raise _bad_line(flag, path, number, f"malformed label name {quote(key)}; expected key=value")
        labels[key] = value
    return labels


def _lines(data: bytes, path: str, flag: str) -> list[tuple[int, str]]:
    """The numbered lines that are neither empty nor comments, without leading blanks, byte order mark and ``\\r``."""
    lines = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.removesuffix(b"\r").decode("utf-8").lstrip(" \t\v\f\r")
        except UnicodeDecodeError:
            raise _bad_line(flag, path, number, "not valid UTF-8") from None
        if "\0" in line:
            raise _bad_line(flag, path, number, "holds a NUL character")
        if line and not line.startswith("#"):
            lines.append((number, line))
    return lines


def _bad_line(flag: str, path: str, number: int, why: str) -> UsageError:
    return UsageError(f"{flag} {quote(path)}: line {number}: {why}")
