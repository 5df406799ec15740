"""``crungo image prune``: remove images that nothing needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.flags import Verb
from crungo.cli.pruning import FLAGS, account, prune_store, selection

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed

__all__ = ["VERB", "call"]

VERB = Verb(
    name="image prune",
    summary="Remove unused images",
    description="Remove images that have no name, or with --all those that no container uses.",
    flags=FLAGS,
)


def call(parsed: Parsed, context: Context) -> int:
    """Ask, remove, and say what it freed."""
    from crungo.cli.output import confirm, emit
    from crungo.image.store import Store

    store = Store(context.roots)
    chosen = selection(parsed, store)
    everything = parsed.switch("all")
    what = "images without at least one container associated to them" if everything else "dangling images"
    if not parsed.switch("force") and not confirm(f"WARNING! This will remove all {what}."):
        return 0
    emit(account(prune_store(store, chosen, everything=everything, leftovers=False)))
    return 0
