"""The typer application: help and shell completion, built from the same tables that command lines are read with.

Invariant: it knows no flag of its own. A verb called through it does the same as through ``crungo.cli.dispatch``, which
comes here only for ``--help`` and completion, because typer takes longer to import than a container takes to start.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from crungo.cli.dispatch import COMPLETE_VARIABLE, GLOBAL_FLAGS, GROUPS, VERBS, check_arguments, load, version
from crungo.cli.flags import Context, Parsed
from crungo.paths import Roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from crungo.cli.dispatch import VerbModule
    from crungo.cli.flags import Argument, Flag, Verb

__all__ = ["build", "run"]

BLANK = " "
"""In place of a switch's type."""
_WIDTH = 100
"""Columns of the help at most; longer lines are hard to read."""


def run(words: Sequence[str]) -> int:
    """Print help, or complete; returns the exit code."""
    os.environ.setdefault("TERMINAL_WIDTH", str(min(_WIDTH, _columns())))
    command = get_command(build())
    code = command(args=list(words), prog_name="crungo", complete_var=COMPLETE_VARIABLE, standalone_mode=False)
    return code if isinstance(code, int) else 0


def build() -> typer.Typer:
    """The application with all verbs."""
    app = _group(
        "crungo",
        "Containers for async Python: run images from any registry, without a daemon, with nothing left behind.",
    )
    app.callback()(_callback(GLOBAL_FLAGS, (), _globals))
    groups = {name: _group(name, f"{summary}.") for name, summary in GROUPS.items()}
    for name in VERBS:
        first, _, second = name.partition(" ")
        _add(groups[first] if second else app, second or first, name)
    for name, group in groups.items():
        app.add_typer(group, name=name, short_help=GROUPS[name], rich_help_panel="Groups of commands")
    return app


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        cls=_Group,
        help=text,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )


def _add(app: typer.Typer, word: str, name: str) -> None:
    """Give the application, or a group of it, the verb that is called ``name`` in the table."""
    module = load(name)
    verb = module.VERB
    settings = {"allow_interspersed_args": verb.interspersed, "help_option_names": [*verb.help_names]}
    command = _callback(verb.flags, verb.arguments, _caller(module, name))
    app.command(
        word,
        cls=_command(verb),
        help=verb.description,
        short_help=verb.summary,
        epilog=verb.epilog or None,
        context_settings=settings,
    )(command)


class _Plain:
    """A command whose help does without the names of Python's types, which typer puts beside every parameter."""

    def get_params(self, context: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = _no_type
            elif parameter.metavar is None:
                parameter.metavar = BLANK
        return parameters


class _Group(_Plain, TyperGroup):
    pass


def _command(verb: Verb) -> type[TyperCommand]:
    """The class of a verb's command, whose line of usage is docker's."""

    class Command(_Plain, TyperCommand):
        def collect_usage_pieces(self, context: Any) -> list[str]:
            return [verb.usage]

    return Command


def _no_type(**_: Any) -> None:
    return None


def _globals(context: typer.Context, values: dict[str, Any]) -> None:
    if values["version"]:
        print(f"crungo version {version()}")
        raise typer.Exit
    roots = Roots.default(root=values["root"], run=values["runroot"])
    context.obj = Context(roots=roots, debug=bool(values["debug"]))


def _caller(module: VerbModule, name: str) -> Callable[[typer.Context, dict[str, Any]], None]:
    def call(context: typer.Context, values: dict[str, Any]) -> None:
        parsed = _parsed(module, values)
        check_arguments(module.VERB, parsed.arguments, name=name)
        raise typer.Exit(module.call(parsed, context.obj))

    return call


def _parsed(module: VerbModule, values: dict[str, Any]) -> Parsed:
    """typer's values in the form of our own parser."""
    found: dict[str, bool | str | tuple[str, ...]] = {}
    for flag in module.VERB.flags:
        value = values[flag.key]
        if flag.kind == "switch":
            found[flag.key] = bool(value)
        elif flag.kind == "list":
            found[flag.key] = tuple(value or ())
        elif value is not None:
            found[flag.key] = value
    arguments: list[str] = []
    for argument in module.VERB.arguments:
        value = values[argument.name.lower()]
        arguments += list(value or ()) if argument.many else [] if value is None else [value]
    return Parsed(values=found, arguments=tuple(arguments))


def _callback(
    flags: Iterable[Flag], arguments: Iterable[Argument], call: Callable[[typer.Context, dict[str, Any]], None]
) -> Callable[..., None]:
    """A function with the signature from which typer makes the parameters of a command."""

    def callback(context: typer.Context, **values: Any) -> None:
        call(context, values)

    annotations: dict[str, Any] = {"context": typer.Context}
    defaults: dict[str, Any] = {"context": inspect.Parameter.empty}
    for argument in arguments:
        info = typer.Argument(help=argument.help, metavar=argument.name, show_default=False)
        kind = list[str] if argument.many else str
        annotations[argument.name.lower()] = Annotated[kind if argument.required else kind | None, info]
        defaults[argument.name.lower()] = inspect.Parameter.empty if argument.required else None
    for flag in flags:
        annotations[flag.key], defaults[flag.key] = _option(flag)
    callback.__annotations__ = {**annotations, "return": None}
    callback.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
            for name, annotation in annotations.items()
        ]
    )
    return callback


def _option(flag: Flag) -> tuple[Any, Any]:
    """The annotation and the default of a flag's parameter."""
    kinds: dict[str, Any] = {"switch": bool, "value": str | None, "list": list[str] | None}
    names = [flag.name, *flag.aliases, *([flag.short] if flag.short else [])]
    info = typer.Option(
        *names,
        help=flag.help,
        metavar=flag.metavar or BLANK,
        show_default=False,
        rich_help_panel=flag.panel,
    )
    return Annotated[kinds[flag.kind], info], flag.default if flag.kind == "switch" else None


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 80
