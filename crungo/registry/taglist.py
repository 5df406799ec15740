"""The answer to a request for a repository's tags (distribution specification, "Listing Tags"). Pure."""

from __future__ import annotations

import re

from crungo.errors import ImageError, RegistryError
from crungo.image import jsondoc

__all__ = ["LARGEST_PAGE", "read_tags"]

LARGEST_PAGE = 16 << 20  # bytes: there are registries that know no pages
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def read_tags(body: bytes, *, what: str, registry: str) -> list[str]:
    """The tags of one page. Some registries write ``null`` for an empty list.

    Raises:
        RegistryError: the page is malformed, or a tag is outside the grammar.
    """
    try:
        document = jsondoc.load(body, what, limit=LARGEST_PAGE)
    except ImageError:
        document = None
    tags = document.get("tags") if isinstance(document, dict) else 0
    if tags is None:
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        raise RegistryError(f"{what}: {registry}: its list of tags is malformed")
    return tags
