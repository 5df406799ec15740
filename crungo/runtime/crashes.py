"""What an engine that crashed leaves in the store, and its removal by the engine's spawner, which survives it.

That is its leases, the layers that it was unpacking and its temporary files. Downloads stay: the next pull goes on from
there. Invariant: what another process holds is not touched; the store's own locks decide.
"""

from __future__ import annotations

import os

__all__ = ["sweep"]

DOWNLOADS = (".part", ".extents")


def sweep(root: str) -> None:
    """Remove what nobody is making any more. Looking costs nothing; what comes after it imports the store."""
    if not _suspected(root):
        return
    from crungo.image.store import Store
    from crungo.paths import Roots

    Store(Roots(root=root, run=root)).collector.leftovers(remove=True, downloads=False)


def _suspected(root: str) -> bool:
    for folder in ("leases", "ingest"):
        try:
            names = os.listdir(f"{root}/{folder}")
        except FileNotFoundError:
            continue
        if any(not name.endswith(DOWNLOADS) for name in names):
            return True
    return False
