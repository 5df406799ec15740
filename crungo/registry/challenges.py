"""The ``WWW-Authenticate`` header: one or several challenges. Pure.

The grammar is RFC 9110, section 11: ``challenge = auth-scheme [ 1*SP ( token68 / #auth-param ) ]``, separated by the
same commas that separate parameters; the reading is therefore done token by token.

Invariant: any input is read in time linear to its length, and what breaks the grammar is skipped, never raised: a
challenge that cannot be understood is one that cannot be answered.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crungo.records import Record, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Challenge", "parse_challenges"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]++=*+(?=[ \t]*+(?:,|\Z))")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_BLANKS = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
# Up to the next comma outside quotes; a quote that is never closed takes all that follows it.
_REST_OF_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^,"])*+', re.DOTALL)
_LONGEST = 16 << 10  # characters of one header line; more is no challenge but an attack


class Challenge(Record):
    """One challenge: ``scheme`` and the names of ``params`` in lower case; ``token68`` where that form was used."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)
    token68: str | None = None


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` lines of a response, in order."""
    return [challenge for line in lines for challenge in _parse_line(line[:_LONGEST])]


def _parse_line(line: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str], str | None]] = []
    position = 0
    while (position := _end(_SEPARATORS, line, position)) < len(line):
        word = _TOKEN.match(line, position)
        if word is None:
            position = max(_end(_REST_OF_ELEMENT, line, position), position + 1)
            continue
        position = word.end()
        equals = _EQUALS.match(line, position)
        if equals is not None and found:  # a parameter of the challenge before it
            value, position = _value(line, equals.end())
            if value is not None:
                found[-1][1].setdefault(word.group().lower(), value)
            continue
        if equals is not None:  # a parameter of no challenge
            position = _end(_REST_OF_ELEMENT, line, position)
            continue
        after = _end(_BLANKS, line, position)
        token68 = _TOKEN68.match(line, after) if after > position else None
        found.append((word.group().lower(), {}, token68.group() if token68 else None))
        position = token68.end() if token68 else after
    return [Challenge(scheme=scheme, params=params, token68=token68) for scheme, params, token68 in found]


def _value(line: str, position: int) -> tuple[str | None, int]:
    """A parameter's value, a token or a quoted string, and where it ends; None for neither."""
    quoted = _QUOTED.match(line, position)
    if quoted is not None:
        return _ESCAPED.sub(r"\1", quoted.group(1)), quoted.end()
    # Some registries leave URLs unquoted; take everything up to the comma, as other clients do.
    end = _end(_REST_OF_ELEMENT, line, position)
    bare = line[position:end].strip(" \t")
    return (bare if bare and '"' not in bare else None), max(end, position)


def _end(pattern: re.Pattern[str], line: str, position: int) -> int:
    match = pattern.match(line, position)
    return match.end() if match is not None else position
