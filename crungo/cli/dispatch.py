"""From a command line to a verb: the global flags, the table of verbs, and the exit code.

Invariant: a verb imports what it alone needs, and nothing is imported for verbs that are not called.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from crungo.cli.flags import Context, Flag, Parsed, Verb, parse
from crungo.cli.messages import report
from crungo.errors import UsageError
from crungo.parsing.values import quote
from crungo.parsing.values import words as split
from crungo.paths import Roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    class VerbModule(Protocol):
        """What a module in ``VERBS`` offers."""

        VERB: Verb

        def call(self, parsed: Parsed, context: Context) -> int:
            """Do what the verb says; returns the exit code, raises errors for :func:`main` to print."""


__all__ = [
    "COMPLETE_VARIABLE",
    "GLOBAL_FLAGS",
    "GROUPS",
    "VERBS",
    "check_arguments",
    "load",
    "main",
    "version",
]

VERBS = {
    "run": "crungo.cli.run_options",
    "pull": "crungo.cli.pull",
    "images": "crungo.cli.images",
    "inspect": "crungo.cli.image_inspect",
    "tag": "crungo.cli.tag",
    "rmi": "crungo.cli.rmi",
    "login": "crungo.cli.login",
    "logout": "crungo.cli.logout",
    "image inspect": "crungo.cli.image_inspect",
    "image ls": "crungo.cli.images",
    "image prune": "crungo.cli.image_prune",
    "image pull": "crungo.cli.pull",
    "image rm": "crungo.cli.rmi",
    "image tag": "crungo.cli.tag",
    "system check": "crungo.cli.system_check",
    "system df": "crungo.cli.system_df",
    "system prune": "crungo.cli.system_prune",
}
"""The modules of the verbs; each has ``VERB`` and ``call``, and imports little before it is called.

A module may serve under several names; the name with a blank is that of a verb in a group.
"""

GROUPS = {
    "image": "Manage images",
    "system": "Manage what crungo keeps on disk",
}
"""The first words of verbs that have two, and what the help says of them."""

_ATTENDED = "a container ends with its crungo run; the library has exec, stop, pause, stats, put, get and more"
_PULLED = "images are pulled, and made elsewhere"
_ALONE = "each container runs on its own"
ABSENT = {
    **dict.fromkeys(
        split(
            "attach container cp create diff events exec kill logs pause port ps rename restart rm start stats stop "
            "top unpause update wait"
        ),
        _ATTENDED,
    ),
    **dict.fromkeys(split("build buildx commit export import load push save"), _PULLED),
    **dict.fromkeys(split("compose kube network pod swarm volume"), _ALONE),
    "history": "crungo inspect tells the layers",
    "info": "crungo system df tells what is on disk",
    "version": "crungo --version tells it",
}
"""What users of docker and podman may try, and why it is not here."""
_CLOSE = 0.65
"""How alike two words are of which one may be meant by the other."""

GLOBAL_FLAGS = (
    Flag(name="--root", metavar="DIR", help="Directory of images and containers (CRUNGO_ROOT)."),
    Flag(name="--runroot", metavar="DIR", help="Directory of running state (CRUNGO_RUN)."),
    Flag(name="--debug", kind="switch", help="Show where errors come from."),
    Flag(name="--version", kind="switch", short="-v", help="Print the version and exit."),
)
COMPLETE_VARIABLE = "_CRUNGO_COMPLETE"
_APPLICATION_FLAGS = ("--install-completion", "--show-completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` without its first word); returns the exit code and prints errors."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    state = _State()
    try:
        return _run(words, state)
    except BaseException as error:  # whatever it is, it becomes a line and an exit code
        return report(error, verb=state.verb, debug=state.debug)


class _State:
    """How far a command line has been read, for the message about an error in it."""

    verb: str | None = None
    debug: bool = False


def _run(words: list[str], state: _State) -> int:
    if COMPLETE_VARIABLE in os.environ or any(word in _APPLICATION_FLAGS for word in words[:1]):
        return _application(words)
    parsed = parse(GLOBAL_FLAGS, words, interspersed=False)
    state.debug = parsed.switch("debug")
    if parsed.switch("version"):
        print(f"crungo version {version()}")
        return 0
    asked = _asked(parsed.arguments)
    if parsed.help or not asked:
        return _application(["--help"])
    name, *rest = asked
    if name in GROUPS:
        if not rest or rest[0] in ("--help", "-h"):
            return _application([name, "--help"])
        state.verb = name
        name = f"{name} {rest.pop(0)}"
    module = load(name)
    state.verb = name
    verb = module.VERB
    line = parse(verb.flags, rest, interspersed=verb.interspersed, help_names=verb.help_names, absent=verb.absent)
    if line.help:
        return _application([*name.split(), "--help"])
    check_arguments(verb, line.arguments, name=name)
    roots = Roots.default(root=parsed.text("root"), run=parsed.text("runroot"))
    return module.call(line, Context(roots=roots, debug=state.debug))


def _asked(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a line, ``help VERB`` as ``VERB --help``."""
    if words[:1] != ("help",):
        return words
    verb = words[1 : 3 if GROUPS.keys() & words[1:2] else 2]
    return (*verb, "--help") if verb else ()


def load(name: str) -> VerbModule:
    """The module of a verb.

    Raises:
        UsageError: there is no such verb.
    """
    place = VERBS.get(name)
    if place is None:
        group, _, last = name.rpartition(" ")
        reason = ABSENT.get(last)
        if reason is not None and (not group or (group == "image" and reason == _PULLED)):
            raise UsageError(f"{name} is not supported: {reason}")
        from difflib import get_close_matches

        known = [verb.split()[-1] for verb in VERBS if verb.rpartition(" ")[0] == group] + [*GROUPS] * (not group)
        close = [f"did you mean {f'{group} {word}'.strip()}?" for word in get_close_matches(last, known, 1, _CLOSE)]
        raise UsageError(f"{quote(name)} is not a crungo command", hint=close[0] if close else None)
    module: Any = import_module(place)
    verb: VerbModule = module
    return verb


def check_arguments(verb: Verb, arguments: Sequence[str], *, name: str) -> None:
    """Refuse too few arguments, or too many; ``name`` is what the verb was called by."""
    wrong = None
    if len(arguments) < sum(argument.required for argument in verb.arguments):
        wrong = f"missing argument {verb.arguments[len(arguments)].name}"
    elif len(arguments) > len(verb.arguments) and not any(argument.many for argument in verb.arguments):
        wrong = "too many arguments"
    if wrong is not None:
        raise UsageError(f"{wrong}; expected crungo {name} {verb.usage}")


def version() -> str:
    """The installed version."""
    from importlib import metadata

    return metadata.version("crungo")


def _application(words: list[str]) -> int:
    from crungo.cli.app import run

    return run(words)
