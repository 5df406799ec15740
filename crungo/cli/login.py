"""``crungo login``: credentials for a registry, verified by it before they are stored."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crungo.cli.flags import Argument, Flag, Verb
from crungo.errors import UsageError

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed
    from crungo.registry.authfiles import Credentials
    from crungo.registry.credentials import Credential

__all__ = ["AUTHFILE", "VERB", "call", "server"]

AUTHFILE = Flag(name="--authfile", metavar="FILE", help="File of credentials (that of docker or podman).")
VERB = Verb(
    name="login",
    summary="Log in to a registry",
    description="Log in to a registry. The credentials are stored when the registry has accepted them.",
    flags=(
        AUTHFILE,
        Flag(name="--password", short="-p", metavar="TEXT", help="Password; others may see it in the process list."),
        Flag(name="--password-stdin", kind="switch", help="Take the password from stdin."),
        Flag(name="--username", short="-u", metavar="NAME", help="User name."),
    ),
    arguments=(Argument(name="SERVER", help="HOST[:PORT] of the registry (docker.io).", required=False),),
)
_LONGEST = 1 << 16  # characters of a password; tokens are long


def call(parsed: Parsed, context: Context) -> int:
    """Ask for what is not given, check it, and store it."""
    import anyio

    from crungo.cli.output import emit
    from crungo.registry.authfiles import Credentials
    from crungo.registry.credentials import Credential

    host = server(parsed)
    file = parsed.text("authfile")
    credentials = Credentials((file,) if file else None)
    # Asked before there is a loop: its handler of Ctrl-C would only make a note of it, and the prompt would stay.
    try:
        username, password = _ask(host, parsed, credentials)
    except (EOFError, KeyboardInterrupt) as error:
        sys.stderr.write("\n")  # what comes next does not belong to the prompt
        if isinstance(error, EOFError):
            raise UsageError("login needs a user name and a password") from None
        raise
    anyio.run(_login, host, Credential(username=username, password=password), credentials)
    emit("Login Succeeded")
    return 0


def server(parsed: Parsed) -> str:
    """The registry that is meant, as ``host[:port]``."""
    from crungo.image.reference import DEFAULT_REGISTRY, check_registry
    from crungo.registry.credentials import server_key

    host = server_key(parsed.arguments[0] if parsed.arguments else DEFAULT_REGISTRY).partition("/")[0]
    check_registry(host)
    return host


async def _login(host: str, given: Credential, credentials: Credentials) -> None:
    from crungo.records import replace
    from crungo.registry.client import RegistryClient

    async with RegistryClient(credentials=credentials) as client:
        token = await client.check_login(host, given.username, given.password)
    await credentials.store(host, replace(given, identity_token=token or ""))


def _ask(host: str, parsed: Parsed, credentials: Credentials) -> tuple[str, str]:
    username, password = parsed.text("username"), parsed.text("password")
    if parsed.switch("password_stdin"):
        if not username:
            raise UsageError("--password-stdin needs --username")
        if password is not None:
            raise UsageError("--password and --password-stdin contradict each other")
        password = sys.stdin.read(_LONGEST).rstrip("\r\n") if sys.stdin is not None else ""
    elif (username is None or password is None) and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(
            "cannot ask for user name and password: stdin is not a terminal", hint="use -u and --password-stdin"
        )
    if username is None:
        username = _ask_username(host, credentials)
    if password is None:
        from getpass import getpass

        password = getpass("Password: ")
    if not username or not password:
        raise UsageError("login needs a user name and a password")
    return username, password


def _ask_username(host: str, credentials: Credentials) -> str:
    import anyio

    known = anyio.run(credentials.find, host)
    default = known.username if known is not None else ""
    sys.stderr.write(f"Username ({default}): " if default else "Username: ")
    sys.stderr.flush()
    line = sys.stdin.readline(_LONGEST)
    if not line:
        raise EOFError
    return line.strip() or default
