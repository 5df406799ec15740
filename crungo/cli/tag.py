"""``crungo tag``: a further name for an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.flags import Argument, Verb

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed

__all__ = ["VERB", "call"]

VERB = Verb(
    name="tag",
    summary="Give an image a further name",
    description="Give an image a further name. An image that had this name loses it.",
    flags=(),
    arguments=(
        Argument(name="SOURCE", help="Name or id of the image."),
        Argument(name="TARGET", help="The new name, REPOSITORY[:TAG]."),
    ),
)


def call(parsed: Parsed, context: Context) -> int:
    """Put the name into the store."""
    from crungo.image.reference import Reference
    from crungo.image.store import Store
    from crungo.images import stored_name

    source, target = parsed.arguments
    store = Store(context.roots)
    store.tag(stored_name(source, store), Reference.parse(target))
    return 0
