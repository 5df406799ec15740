"""What registries answer, read: headers, links and error bodies. Pure.

Invariant: everything returned here is bounded in length and, where it is text for people, free of control characters,
so that a registry cannot write to a user's terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urljoin

from crungo.image.digest import is_digest
from crungo.records import Record

__all__ = [
    "ContentRange",
    "Headers",
    "error_detail",
    "media_type",
    "next_page",
    "parse_content_range",
    "printable",
    "said_digest",
]

_RANGE = r"bytes[ \t]+(?:(?P<first>[0-9]{1,19})-(?P<last>[0-9]{1,19})|\*)/(?:(?P<total>[0-9]{1,19})|\*)"
_LINK = r"<([^<>]*)>((?:[ \t]*;[^,;<>]*)*)"
_NEXT = r""";[ \t]*rel[ \t]*=[ \t]*(?:next|"(?:[^"]*[ \t])?next(?:[ \t][^"]*)?")[ \t]*(?:;|$)"""
_LONGEST_DETAIL = 300


class Headers(Mapping[str, str]):
    """The fields of an answer by name, in lower case; the values of one that comes several times are joined by commas.

    Bytes beyond ASCII, which RFC 9110 (5.5) gives no meaning, are read as Latin-1.
    """

    def __init__(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        self._lines: dict[str, list[str]] = {}
        for name, value in items:
            self._lines.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._lines[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self, name: str) -> list[str]:
        """Each value of a field by itself."""
        return self._lines.get(name, [])


class ContentRange(Record):
    """A ``Content-Range``: bytes ``start`` up to, not including, ``end``, of ``total``; None for what was not said.

    The unsatisfied form (``bytes */total``) has neither ``start`` nor ``end``.
    """

    start: int | None
    end: int | None
    total: int | None


def parse_content_range(value: str | None) -> ContentRange | None:
    """Read a ``Content-Range`` header (RFC 9110, 14.4); None for an absent, malformed or contradictory one."""
    match = re.fullmatch(_RANGE, (value or "").strip())
    if match is None:
        return None
    total = int(match["total"]) if match["total"] else None
    if match["first"] is None:
        return ContentRange(start=None, end=None, total=total)
    start, end = int(match["first"]), int(match["last"]) + 1
    if start >= end or (total is not None and end > total):
        return None
    return ContentRange(start=start, end=end, total=total)


def next_page(links: Iterable[str], *, base: str) -> str | None:
    """The absolute URL of the ``Link`` header (RFC 8288) whose relation is ``next``, resolved against ``base``."""
    for line in links:
        for target, parameters in re.findall(_LINK, line[:8192]):
            if re.search(_NEXT, parameters, re.IGNORECASE):
                try:
                    return urljoin(base, str(target))
                except ValueError:
                    return None
    return None


def media_type(content_type: str | None) -> str:
    """A ``Content-Type`` without its parameters, in lower case; empty where there is none."""
    return printable((content_type or "").partition(";")[0].strip().lower(), limit=200)


def said_digest(value: str | None) -> str | None:
    """A ``Docker-Content-Digest``; None where it is absent or nothing that can be checked."""
    text = (value or "").strip()
    return text if is_digest(text) else None


def printable(text: str, *, limit: int = _LONGEST_DETAIL) -> str:
    """``text`` on one line: what is not printable becomes a blank, runs of blanks become one, the end may be cut."""
    cut = text[: limit * 4]
    line = " ".join("".join(char if char.isprintable() else " " for char in cut).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def error_detail(body: bytes, content_type: str | None) -> str:
    """What the body of a refusal says: ``CODE: message`` of the first error, or a line of plain text, or nothing.

    The shapes are those of the distribution specification (``errors``), of token servers (``details``, ``message``) and
    of OAuth 2 (``error``, ``error_description``).
    """
    kind = media_type(content_type)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return printable(body.decode("utf-8", "replace")) if kind == "text/plain" else ""
    if not isinstance(document, dict):
        return ""
    errors = document.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        document = errors[0]
    code = _text(document, "code", "error")
    message = _text(document, "message", "error_description", "details", "detail")
    return printable(": ".join(part for part in (code, message) if part))


def _text(document: dict[str, object], *keys: str) -> str:
    return next((value for key in keys if isinstance(value := document.get(key), str) and value.strip()), "")
