"""``crungo rmi``: remove names of images, and with their last names the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.flags import Argument, Flag, Verb
from crungo.cli.messages import report
from crungo.errors import CrungoError, ImageNotKnown

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed

__all__ = ["VERB", "call"]

VERB = Verb(
    name="rmi",
    summary="Remove images",
    description="Remove names of images, and with its last name an image. An image that containers use is kept.",
    flags=(
        Flag(
            name="--force",
            short="-f",
            kind="switch",
            help="Remove all names of an id, also those of an image in use; missing images are no error.",
        ),
        Flag(name="--no-prune", kind="switch", help="Accepted: there are no untagged parents to keep."),
    ),
    arguments=(Argument(name="IMAGE", help="Names, ids or digests.", many=True),),
)


def call(parsed: Parsed, context: Context) -> int:
    """Remove one after the other; what cannot be removed is told, and keeps none of the others."""
    from crungo.cli.output import emit
    from crungo.image.store import Store
    from crungo.images import stored_name

    store = Store(context.roots)
    force = parsed.switch("force")
    code = 0
    for name in parsed.arguments:
        try:
            removal = store.remove(stored_name(name, store), force=force, in_use=store.users)
        except CrungoError as error:
            if not (force and isinstance(error, ImageNotKnown)):
                code = max(code, report(error, verb="rmi", debug=context.debug))
            continue
        lines = [f"Untagged: {name}" for name in removal.untagged] + [f"Deleted: {name}" for name in removal.deleted]
        emit("".join(f"{line}\n" for line in lines))
    return code
