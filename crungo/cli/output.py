"""What verbs print, on stdout: the answer that was asked for, and nothing else.

Invariant: text goes out whole and flushed, so that a reader that has left is noticed while it can still be told, and
what images say of themselves cannot steer a terminal.
"""

from __future__ import annotations

import re
import sys

__all__ = ["confirm", "emit", "to_json"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UNSAFE = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
_BEYOND_JSON = r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def emit(text: str) -> None:
    """Write lines to stdout, each as it is; at a terminal, characters that would steer it are escaped."""
    if not text:
        return
    if sys.stdout.isatty():
        text = re.sub(_UNSAFE, _escaped, text)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + ("" if text.endswith("\n") else "\n"))
    sys.stdout.flush()


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON as docker prints it, with every character beyond ASCII that is not plain text escaped."""
    import json

    text = json.dumps(value, indent=indent, ensure_ascii=False, separators=None if indent else (",", ":"))
    return re.sub(_BEYOND_JSON, lambda found: f"\\u{ord(found[0]):04x}", text)


def confirm(warning: str) -> bool:
    """Ask on the terminal, or whatever stdin is; only a y is a yes."""
    sys.stdout.write(f"{warning}\nAre you sure you want to continue? [y/N] ")
    sys.stdout.flush()
    return sys.stdin is not None and sys.stdin.readline(100).strip().lower() in ("y", "yes")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
