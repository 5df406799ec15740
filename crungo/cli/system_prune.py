"""``crungo system prune``: remove all that nothing needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crungo.cli.flags import Verb
from crungo.cli.human import count
from crungo.cli.pruning import FLAGS, account, prune_store, selection

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed

__all__ = ["VERB", "call"]

VERB = Verb(
    name="system prune",
    summary="Remove unused data",
    description="Remove images without a name, unfinished downloads, and what killed processes have left.",
    flags=FLAGS,
)


def call(parsed: Parsed, context: Context) -> int:
    """Ask, remove, and say what it freed."""
    from crungo.cli import dead_containers
    from crungo.cli.output import confirm, emit
    from crungo.image.store import Store

    store = Store(context.roots)
    chosen = selection(parsed, store)
    everything = parsed.switch("all")
    what = "images without at least one container associated to them" if everything else "dangling images"
    warning = (
        "WARNING! This will remove:\n  - what containers have left whose owners were killed\n"
        f"  - all {what}\n  - unfinished downloads and layers\n"
    )
    if not parsed.switch("force") and not confirm(warning):
        return 0
    removed, freed = dead_containers.remove(context.roots) if os.geteuid() == 0 else (0, 0)
    pruned = prune_store(store, chosen, everything=everything, leftovers=True)
    if removed:
        emit(f"Deleted leftovers of {count(removed, 'container')}\n")
    emit(account(pruned, more=freed))
    # Who cleans up has time to wait for the disk; from here on no restart of the machine makes a layer doubtful.
    store.settle()
    return 0
