"""What ``image prune`` and ``system prune`` have in common: the question, the removal, and the account of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli import human
from crungo.cli.flags import Flag

if TYPE_CHECKING:
    from crungo.cli.flags import Parsed
    from crungo.cli.image_filters import Selection
    from crungo.image.store import Store
    from crungo.image.usage import Pruned

__all__ = ["FLAGS", "account", "prune_store", "selection"]

FLAGS = (
    Flag(name="--all", short="-a", kind="switch", help="Remove all images that no container uses, named or not."),
    Flag(name="--force", short="-f", kind="switch", help="Do not ask."),
    Flag(name="--filter", kind="list", metavar="KEY=VALUE", help="Only images that fit: label, until."),
)


def selection(parsed: Parsed, store: Store) -> Selection:
    """The images that ``--filter`` leaves to be removed."""
    from crungo.cli.image_filters import select

    return select(parsed.texts("filter"), find=store.image, allowed=("label", "until"))


def prune_store(store: Store, chosen: Selection, *, everything: bool, leftovers: bool) -> Pruned:
    """Remove images, and perhaps what interrupted work left."""
    from crungo.image.usage import prune

    return prune(
        store,
        images="all" if everything else "dangling",
        leftovers=leftovers,
        in_use=store.users,
        wanted=chosen.has,
    )


def account(pruned: Pruned, *, more: int = 0) -> str:
    """What was removed, as docker tells it; ``more`` bytes went elsewhere."""
    lines = []
    if pruned.untagged or pruned.deleted:
        lines = ["Deleted Images:", *(f"untagged: {name}" for name in pruned.untagged)]
        lines += [*(f"deleted: {name}" for name in pruned.deleted), ""]
    if pruned.leftovers:
        lines += ["Deleted leftovers of interrupted work:", *pruned.leftovers, ""]
    lines.append(f"Total reclaimed space: {human.size(pruned.freed + more, digits=4)}")
    return "\n".join(lines)
