"""``crungo logout``: forget the credentials for a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.flags import Argument, Verb
from crungo.cli.login import AUTHFILE, server

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed

__all__ = ["VERB", "call"]

VERB = Verb(
    name="logout",
    summary="Log out from a registry",
    description="Remove the stored credentials for a registry, from files and credential helpers.",
    flags=(AUTHFILE,),
    arguments=(Argument(name="SERVER", help="HOST[:PORT] of the registry (docker.io).", required=False),),
)


def call(parsed: Parsed, context: Context) -> int:
    """Remove them; none is no error."""
    import anyio

    from crungo.cli.output import emit
    from crungo.registry.authfiles import Credentials

    host = server(parsed)
    file = parsed.text("authfile")
    known = anyio.run(Credentials((file,) if file else None).erase, host)
    emit(f"Removing login credentials for {host}" if known else f"Not logged in to {host}")
    return 0
