"""``crungo inspect`` and ``crungo image inspect``: all that is known of images, in docker's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.flags import Argument, Flag, Verb
from crungo.cli.messages import report
from crungo.errors import CrungoError, UsageError

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed

__all__ = ["VERB", "call"]

VERB = Verb(
    name="inspect",
    summary="Show all details of images",
    description="Show all details of images, as a JSON array with docker's fields.",
    flags=(
        Flag(name="--format", short="-f", metavar="FORMAT", help="json, or a Go template, such as {{.Config.Env}}."),
        Flag(name="--type", metavar="TYPE", help="Kind of object to look for: image (image)."),
    ),
    arguments=(Argument(name="IMAGE", help="Names or ids.", many=True),),
)


def call(parsed: Parsed, context: Context) -> int:
    """Print what was found; what was not is told after it."""
    from crungo.cli.image_view import image_view
    from crungo.cli.output import emit, to_json
    from crungo.cli.templates import Template, plain
    from crungo.image.store import Store
    from crungo.images import stored_name

    if parsed.text("type") not in (None, "", "image"):
        raise UsageError("--type: only image is known")
    form = parsed.text("format") or "json"
    template = None if form == "json" else Template(form)
    store = Store(context.roots)
    found, failures = [], []
    for name in parsed.arguments:
        try:
            found.append(image_view(store.image(stored_name(name, store))))
        except CrungoError as error:
            failures.append(error)
    if template is not None:
        emit("".join(f"{template.render(view)}\n" for view in found))
    else:
        emit(to_json(plain(found), indent=4))
    return max((report(error, verb="inspect", debug=context.debug) for error in failures), default=0)
