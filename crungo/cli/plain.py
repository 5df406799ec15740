"""Text that images, registries and containers have had a hand in, as it may be shown on a terminal.

Invariant: what comes out holds no character that steers a terminal, whatever went in.
"""

from __future__ import annotations

import codecs

from crungo.errors import printable

__all__ = ["PlainText"]


class PlainText:
    """A stream as it may be shown, line by line, however it was cut into chunks."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, chunk: bytes, *, final: bool = False) -> bytes:
        """What is to be shown of the next chunk; a character that is cut in two comes with the rest of it."""
        return printable(self._decoder.decode(chunk, final), keep="\n\t").encode()
