"""What a program has switched on in the terminal that shows its output, and how to switch it off again.

A program that is killed (out of memory, a deadline, ``kill``) leaves the screen as it was just then: in the
alternate screen, without a cursor, reporting every move of the mouse to the shell. Resetting everything afterwards
would be wrong as well: leaving an alternate screen that was never entered makes xterm jump to a stale position. So the
output is watched, and exactly what is still on at the end is undone; a program that tidied up costs no byte.

Invariant: ``feed`` changes nothing, and finds each sequence however the output was cut into chunks.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ModeTracker"]

# DEC private modes (xterm, "ctlseqs"), each with the state that a shell expects.
_NORMAL: Final[dict[int, bool]] = {
    1: False,  # application cursor keys
    7: True,  # wrap at the right margin
    9: False,  # mouse reports, in all their variants
    25: True,  # the cursor is shown
    47: False,  # the alternate screen, in its three variants
    1000: False,
    1001: False,
    1002: False,
    1003: False,
    1004: False,  # reports of focus
    1005: False,
    1006: False,
    1015: False,
    1016: False,
    1047: False,
    1049: False,
    2004: False,  # bracketed paste
    2026: False,  # synchronized output: the screen stands still
}
# Leave the alternate screen last: what was set there is undone there.
_LAST: Final = (47, 1047, 1049)

_SEQUENCE: Final = re.compile(rb"\x1b(?:\[\?([0-9;]{1,64})([hl])|([=>c]))")
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[(?:\?[0-9;]{0,64})?)?\Z")
_LONGEST: Final = 68  # bytes of an unfinished sequence


class ModeTracker:
    """Watches output for modes that outlive the program; see the module."""

    __slots__ = ("_changed", "_keypad", "_tail")

    def __init__(self) -> None:
        self._changed: set[int] = set()
        self._keypad = False
        self._tail = b""

    def feed(self, chunk: memoryview | bytes) -> None:
        """Watch the next chunk of output."""
        data = self._tail + bytes(chunk)
        if b"\x1b" not in data:
            self._tail = b""
            return
        for match in _SEQUENCE.finditer(data):
            self._apply(match)
        unfinished = _UNFINISHED.search(data, max(0, len(data) - _LONGEST))
        self._tail = unfinished.group() if unfinished else b""

    def _apply(self, match: re.Match[bytes]) -> None:
        numbers, switch, single = match.groups()
        if single == b"c":  # RIS: everything is as after power-on
            self._changed.clear()
            self._keypad = False
        elif single is not None:
            self._keypad = single == b"="
        else:
            for number in numbers.split(b";"):
                mode = int(number or b"0")
                if mode in _NORMAL:
                    normal = _NORMAL[mode] == (switch == b"h")
                    (self._changed.discard if normal else self._changed.add)(mode)

    def undo(self) -> bytes:
        """The sequences that bring back what a shell expects; empty if the program left nothing behind.

        With them goes SGR 0: who left a mode on may have left a colour on, too. Afterwards nothing is on.
        """
        if not self._changed and not self._keypad:
            return b""
        parts = [b"\x1b>"] if self._keypad else []
        for mode in sorted(self._changed, key=lambda mode: (mode in _LAST, mode)):
            parts.append(b"\x1b[?%d%c" % (mode, b"h" if _NORMAL[mode] else b"l"))
        self._changed.clear()
        self._keypad = False
        return b"".join([*parts, b"\x1b[m"])
