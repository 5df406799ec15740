"""``crungo system df``: what is kept on disk, and what of it could go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crungo.cli import human
from crungo.cli.flags import Flag, Verb
from crungo.errors import UsageError

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed
    from crungo.image.usage import Usage

__all__ = ["VERB", "call"]

VERB = Verb(
    name="system df",
    summary="Show disk usage",
    description="Show what images, containers and the leftovers of interrupted work take on disk.",
    flags=(
        Flag(name="--format", metavar="FORMAT", help="table, json, or a Go template, such as {{.Size}}."),
        Flag(name="--verbose", short="-v", kind="switch", help="Show every image."),
    ),
    epilog="Images take the space of their unpacked layers, and of the blobs that these were unpacked from.",
)
TITLES = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
VERBOSE = ("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers")


def call(parsed: Parsed, context: Context) -> int:
    """Print the table."""
    from crungo.cli import dead_containers
    from crungo.cli.output import emit
    from crungo.cli.tables import show
    from crungo.image.store import Store
    from crungo.image.usage import usage

    form = parsed.text("format")
    verbose = parsed.switch("verbose")
    if verbose and form:
        raise UsageError("--verbose and --format contradict each other")
    store = Store(context.roots)
    used = usage(store, store.in_use())
    living, dead, dead_size = dead_containers.measure(context.roots)
    if verbose:
        _show_images(used)
        for what, size in (("Blobs", used.blobs), ("Containers", dead_size), ("Leftovers", used.leftovers)):
            emit(f"\n{what} usage: {human.size(size, digits=4)}\n")
        return 0
    active = sum(row.containers > 0 for row in used.images)
    rows = [
        _row("Images", len(used.images), active, used.layers + used.blobs, used.reclaimable),
        _row("Containers", living + dead, living, dead_size, dead_size),
        _row("Leftovers", used.leftover_count, 0, used.leftovers, used.leftovers),
    ]
    show(rows, tuple(TITLES), TITLES, form)
    return 0


def _row(kind: str, total: int, active: int, size: int, reclaimable: int) -> dict[str, str]:
    share = f" ({reclaimable * 100 // size}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": str(total),
        "Active": str(active),
        "Size": human.size(size, digits=4),
        "Reclaimable": human.size(reclaimable, digits=4) + share,
    }


def _show_images(used: Usage) -> None:
    from crungo.cli import images
    from crungo.cli.output import emit
    from crungo.cli.tables import show

    now = time.time()
    rows = [
        {
            **cells,
            "SharedSize": human.size(row.shared, digits=4),
            "UniqueSize": human.size(row.unique, digits=4),
            "Containers": str(row.containers),
        }
        for row in used.images
        for cells in images.rows(row.image, row.image.references, now)
    ]
    emit("Images space usage:\n\n")
    show(rows, VERBOSE, images.TITLES)
