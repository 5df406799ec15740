"""Where crungo keeps its files: the store (``root``) and what must not outlive a boot (``run``).

Root's places are ``/var/lib/crungo`` and ``/run/crungo``; other users' come from the XDG base directory
specification. ``CRUNGO_ROOT`` and ``CRUNGO_RUN`` override both, and so do explicit values.
"""

from __future__ import annotations

import os

from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Roots"]


class Roots(Record):
    """The two directories that one store lives in; both absolute."""

    root: str
    run: str

    @classmethod
    def default(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        run: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
        uid: int | None = None,
    ) -> Roots:
        """The directories for this user: explicit values first, then the environment, then the defaults."""
        uid = os.geteuid() if uid is None else uid
        if uid == 0:
            default_root, default_run = "/var/lib/crungo", "/run/crungo"
        else:
            home = environ.get("HOME") or "/"
            default_root = os.path.join(environ.get("XDG_DATA_HOME") or f"{home}/.local/share", "crungo")
            default_run = os.path.join(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}", "crungo")
        return cls(
            root=os.path.abspath(root or environ.get("CRUNGO_ROOT") or default_root),
            run=os.path.abspath(run or environ.get("CRUNGO_RUN") or default_run),
        )
