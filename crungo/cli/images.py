"""``crungo images``: the images on this machine, a row for each of their names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crungo.cli import human
from crungo.cli.flags import Argument, Flag, Verb
from crungo.errors import UsageError

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed
    from crungo.image.reference import Reference
    from crungo.image.store import Image

__all__ = ["VERB", "call", "row", "rows"]

VERB = Verb(
    name="images",
    summary="List images",
    description="List the images on this machine, newest first.",
    flags=(
        Flag(name="--all", short="-a", kind="switch", help="Accepted: there are no intermediate images to show."),
        Flag(name="--digests", kind="switch", help="Show digests."),
        Flag(
            name="--filter",
            short="-f",
            kind="list",
            metavar="KEY=VALUE",
            help="Only these: dangling, reference, before, since, label, until.",
        ),
        Flag(name="--format", metavar="FORMAT", help="table, json, or a Go template, such as {{.ID}}."),
        Flag(name="--no-trunc", kind="switch", help="Show whole ids."),
        Flag(name="--quiet", short="-q", kind="switch", help="Show ids only."),
    ),
    arguments=(
        Argument(name="REPOSITORY", help="Only images of this name, REPOSITORY[:TAG]; * and ? match.", required=False),
    ),
)
TITLES = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "Containers": "CONTAINERS",
}
NONE = "<none>"


def call(parsed: Parsed, context: Context) -> int:
    """Print the list."""
    from crungo.cli.image_filters import select
    from crungo.cli.output import emit
    from crungo.cli.tables import show
    from crungo.image.store import Store

    form = parsed.text("format")
    quiet, whole = parsed.switch("quiet"), parsed.switch("no_trunc")
    if quiet and form:
        raise UsageError("--quiet and --format contradict each other")
    store = Store(context.roots)
    wanted = select(parsed.texts("filter"), find=store.image, patterns=parsed.arguments)
    found = [(image, names) for image in store.images() if (names := wanted.names(image)) is not None]
    if quiet:
        ids = (image.id if whole else image.id[7:19] for image, names in found for _ in names or (None,))
        emit("".join(f"{identifier}\n" for identifier in ids))
        return 0
    digests = ("Digest",) if parsed.switch("digests") else ()
    columns = ("Repository", "Tag", *digests, "ID", "CreatedSince", "Size")
    now = time.time()
    show([cells for image, names in found for cells in rows(image, names, now, whole=whole)], columns, TITLES, form)
    return 0


def rows(image: Image, names: tuple[Reference, ...], now: float, *, whole: bool = False) -> list[dict[str, str]]:
    """A row for each name, or one for an image without a name."""
    return [row(image, name, now, whole=whole) for name in names] or [row(image, None, now, whole=whole)]


def row(image: Image, name: Reference | None, now: float, *, whole: bool = False) -> dict[str, str]:
    """The fields of one row."""
    size = human.size(image.size)
    return {
        "ID": image.id if whole else image.id[7:19],
        "Repository": NONE if name is None else name.familiar_name,
        "Tag": (name.tag if name is not None else None) or NONE,
        "Digest": NONE if name is None else name.digest or image.target,
        "CreatedSince": human.ago(image.created, now),
        "CreatedAt": human.moment(image.created),
        "Size": size,
        "VirtualSize": size,
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
        "Containers": "N/A",
    }
