"""For the documentation: docstrings name other objects by Sphinx's roles, of which Markdown knows nothing.

``:class:`crungo.Engine` `` becomes plain code; everything else is Markdown already.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Roles"]

ROLE = re.compile(r":(?:class|meth|mod|func|attr|data|exc):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Replaces roles in every docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
