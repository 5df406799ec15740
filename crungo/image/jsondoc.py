"""JSON from outside, read with suspicion.

Invariant: what ``load`` lets through is bounded in size, nesting and number of parts, has no key twice (two readers
could each take another one) and no number that is not a number; what the getters let through has the type that is
asked for. Every failure is an ``ImageError`` that names the document and the field.
"""

from __future__ import annotations

import json

from crungo.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

    JsonObject = Mapping[str, Any]

__all__ = ["document", "integer", "items", "load", "mapping", "strings", "text", "text_map"]

_MOST_PARTS = 400_000  # commas, braces and brackets: bounds what 8 MiB of "{}," would cost in memory


def load(body: bytes, what: str, *, limit: int) -> object:
    """Parse a document of at most ``limit`` bytes; ``what`` names it in errors."""
    if len(body) > limit:
        raise ImageError(f"{what}: larger than {limit} bytes")
    if body.count(b",") + body.count(b"{") + body.count(b"[") > _MOST_PARTS:
        raise ImageError(f"{what}: has more than {_MOST_PARTS} parts")
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ImageError(f"{what}: nested too deeply") from None
    except ValueError as error:  # also bad UTF-8, and numbers of more digits than Python converts
        raise ImageError(f"{what}: not valid JSON: {error}"[:300]) from None


def document(body: bytes, what: str, *, limit: int) -> JsonObject:
    """Parse a document that must be an object."""
    value = load(body, what, limit=limit)
    if not isinstance(value, dict):
        raise ImageError(f"{what}: is not a JSON object")
    return value


def mapping(parent: JsonObject, key: str, what: str) -> JsonObject:
    """The object under ``key``; empty where it is absent or null."""
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        _wrong(what, key, "an object")
    return value


def items(parent: JsonObject, key: str, what: str) -> list[object]:
    """The array under ``key``; empty where it is absent or null."""
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        _wrong(what, key, "an array")
    return value


def text(parent: JsonObject, key: str, what: str, *, lenient: bool = False) -> str:
    """The string under ``key``; empty where it is absent or null.

    A NUL or half a surrogate pair, which no argument vector or file could hold, is refused; with ``lenient``, for
    strings that are only shown, it is replaced.
    """
    value = parent.get(key)
    if value is None:
        return ""
    return _checked(value, what, key, lenient=lenient)


def strings(parent: JsonObject, key: str, what: str) -> tuple[str, ...]:
    """The array of strings under ``key``."""
    return tuple(_checked(item, what, key) for item in items(parent, key, what))


def text_map(parent: JsonObject, key: str, what: str) -> dict[str, str]:
    """The object under ``key`` whose values are strings (labels, annotations)."""
    return {
        _checked(name, what, key): _checked("" if value is None else value, what, key)
        for name, value in mapping(parent, key, what).items()
    }


def integer(parent: JsonObject, key: str, what: str, *, most: int) -> int:
    """The number under ``key``, from 0 to ``most``; it must be there."""
    value = parent.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        _wrong(what, key, f"a whole number from 0 to {most}")
    return value


def _checked(value: object, what: str, key: str, *, lenient: bool = False) -> str:
    if not isinstance(value, str):
        _wrong(what, key, "a string")
    if "\0" in value or (not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)):
        if not lenient:
            raise ImageError(f"{what}: {key!a:.60} holds a character that no file or argument can hold")
        return value.replace("\0", "?").encode("utf-8", "replace").decode("utf-8")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!a:.60} appears twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _wrong(what: str, key: str, expected: str) -> NoReturn:
    raise ImageError(f"{what}: {key!a:.60} is not {expected}")
