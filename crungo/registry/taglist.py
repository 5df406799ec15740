"""The answer to a request for a repository's tags (distribution specification, "Listing Tags"). Pure."""

from __future__ import annotations

import json
import re

from crungo.errors import RegistryError

__all__ = ["read_tags"]

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def read_tags(body: bytes, *, what: str, registry: str) -> list[str]:
    """The tags of one page. Some registries write ``null`` for an empty list.

    Raises:
        RegistryError: the page is malformed, or a tag is outside the grammar.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    tags = document.get("tags") if isinstance(document, dict) else 0
    if tags is None:
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        raise RegistryError(f"{what}: {registry}: its list of tags is malformed")
    return tags
