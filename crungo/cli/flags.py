"""Verbs and their flags as data, and the parser of command lines.

Each verb's flags are one table. From it this parser reads the arguments, in well under a millisecond, and
``crungo.cli.app`` builds the typer application that prints help and completes in shells. Parsing with typer itself
would cost more than starting a container does: it imports for 40 ms, and builds a pydantic validator per flag.

Invariant: the grammar is pflag's, which docker and podman use: ``--name value``, ``--name=value``, ``-n value``,
``-nvalue``, ``-n=value``, switches together (``-it``) and with a value (``--rm=false``), ``--`` before arguments
that start with a dash; ``-`` alone is an argument.
"""

from __future__ import annotations

from crungo.errors import UsageError
from crungo.parsing.values import parse_bool, quote
from crungo.records import Record, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

    from crungo.paths import Roots

__all__ = ["Argument", "Context", "Flag", "Parsed", "Verb", "parse"]


class Flag(Record):
    """One flag: ``switch`` takes no value, ``value`` one (the last counts), ``list`` collects all.

    ``aliases`` are further long names. ``metavar`` stands for the value in the help; ``panel`` is the help's section.
    """

    name: str
    help: str
    kind: Literal["switch", "value", "list"] = "value"
    short: str | None = None
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    panel: str = "Options"
    default: bool = False  # of a switch

    @property
    def key(self) -> str:
        """The name as an identifier: ``cap_add`` of ``--cap-add``."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def names(self) -> tuple[str, ...]:
        """All spellings, the short one first."""
        return (*((self.short,) if self.short else ()), self.name, *self.aliases)


class Argument(Record):
    """A positional argument; ``many`` takes all that remain."""

    name: str
    help: str
    required: bool = True
    many: bool = False

    @property
    def usage(self) -> str:
        """As docker and podman write it in a line of usage: ``IMAGE [IMAGE...]``."""
        rest = f"[{self.name}...]"
        if not self.required:
            return rest if self.many else f"[{self.name}]"
        return f"{self.name} {rest}" if self.many else self.name


class Verb(Record):
    """A verb of the command line. With ``interspersed`` flags may also follow the first argument."""

    name: str
    summary: str
    description: str
    flags: tuple[Flag, ...]
    arguments: tuple[Argument, ...] = ()
    epilog: str = ""
    interspersed: bool = True
    absent: Mapping[str, str] = field(default_factory=dict)
    """Flags that users know from docker and podman and that are not here, with the reason, which is told."""

    @property
    def help_names(self) -> tuple[str, ...]:
        """The flags that ask for help: ``-h`` too, where it has no other meaning."""
        taken = any(flag.short == "-h" for flag in self.flags)
        return ("--help",) if taken else ("-h", "--help")

    @property
    def usage(self) -> str:
        """What comes after the verb."""
        return " ".join(("[OPTIONS]", *(argument.usage for argument in self.arguments)))


class Context(Record):
    """What the global flags say."""

    roots: Roots
    debug: bool = False


class Parsed(Record):
    """A parsed command line; ``help`` when ``--help`` was met, and then nothing after it was looked at."""

    values: Mapping[str, bool | str | tuple[str, ...]]
    arguments: tuple[str, ...]
    help: bool = False

    def switch(self, key: str) -> bool:
        """Whether a switch is on."""
        return self.values[key] is True

    def text(self, key: str) -> str | None:
        """The value of a flag, ``None`` where it was not given."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def texts(self, key: str) -> tuple[str, ...]:
        """All values of a flag that collects them."""
        value = self.values.get(key)
        return value if isinstance(value, tuple) else ()


def parse(
    flags: Iterable[Flag],
    arguments: Sequence[str],
    *,
    interspersed: bool = True,
    help_names: Sequence[str] = ("-h", "--help"),
    absent: Mapping[str, str] | None = None,
) -> Parsed:
    """Read a command line; ``absent`` as in :class:`Verb`.

    Raises:
        UsageError: an unknown flag, or a flag without its value.
    """
    reader = _Reader(flags, help_names, absent or {})
    rest: list[str] = []
    todo = list(arguments)
    while todo and not reader.help:
        word = todo.pop(0)
        if word == "--":
            rest += todo
            break
        if word.startswith("-") and word != "-":
            (reader.long if word.startswith("--") else reader.short)(word, todo)
        elif interspersed:
            rest.append(word)
        else:
            rest += [word, *todo]
            break
    return Parsed(values=reader.values(), arguments=tuple(rest), help=reader.help)


class _Reader:
    """Collects flags; the words that it is handed are taken from the front of the command line's rest."""

    def __init__(self, flags: Iterable[Flag], help_names: Sequence[str], absent: Mapping[str, str]) -> None:
        self._flags = tuple(flags)
        self._by_name = {name: flag for flag in self._flags for name in flag.names}
        self._help_names = help_names
        self._absent = absent
        self._switches: dict[str, bool] = {}
        self._values: dict[str, list[str]] = {}
        self.help = False

    def values(self) -> dict[str, bool | str | tuple[str, ...]]:
        result: dict[str, bool | str | tuple[str, ...]] = {}
        for flag in self._flags:
            given = self._values.get(flag.key)
            if flag.kind == "switch":
                result[flag.key] = self._switches.get(flag.key, flag.default)
            elif flag.kind == "list":
                result[flag.key] = tuple(given or ())
            elif given is not None:
                result[flag.key] = given[-1]
        return result

    def long(self, word: str, todo: list[str]) -> None:
        name, equals, value = word.partition("=")
        flag = self._by_name.get(name)
        if flag is None:
            if name in self._help_names:
                self.help = True
                return
            self._refuse_absent(name)
            raise UsageError(f"unknown flag: {_shown(name)}", hint=self._suggestion(name))
        self._take(flag, name, value if equals else None, todo)

    def short(self, word: str, todo: list[str]) -> None:
        letters = word[1:]
        while letters and not self.help:
            name, letters = f"-{letters[0]}", letters[1:]
            flag = self._by_name.get(name)
            if flag is None:
                if name in self._help_names:
                    self.help = True
                    return
                self._refuse_absent(name)
                raise UsageError(f"unknown shorthand flag: {_shown(name)} in {_shown(word)}")
            if flag.kind == "switch" and not letters.startswith("="):
                self._take(flag, name, None, todo)
            else:
                self._take(flag, name, letters.removeprefix("=") if letters else None, todo)
                return

    def _take(self, flag: Flag, name: str, value: str | None, todo: list[str]) -> None:
        if flag.kind == "switch":
            self._switches[flag.key] = True if value is None else parse_bool(value, flag=name)
            return
        if value is None:
            if not todo:
                raise UsageError(f"flag needs an argument: {name}")
            value = todo.pop(0)
        self._values.setdefault(flag.key, []).append(value)

    def _refuse_absent(self, name: str) -> None:
        if name in self._absent:
            raise UsageError(f"{name} is not supported: {self._absent[name]}")

    def _suggestion(self, name: str) -> str | None:
        from difflib import get_close_matches  # on the way to an error, time is of no matter

        found = get_close_matches(name, [known for known in self._by_name if known.startswith("--")], n=1, cutoff=0.75)
        return f"did you mean {found[0]}?" if found else None


def _shown(word: str) -> str:
    """The word as it was typed, or quoted where it would spoil the line."""
    return word if word.isprintable() and len(word) < 60 else quote(word)
