"""Go templates over our values, with the functions that docker adds and Go's way of printing values. Pure.

A ``Record`` is what a struct is to Go: a field that it lacks is an error. A plain dict is a map: a key that it lacks is
``<no value>``. ``NIL_LIST`` and ``NIL_MAP`` are Go's nil slices and maps: ``[]`` and ``map[]``, and ``null`` in JSON.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from crungo.cli.output import to_json
from crungo.cli.template_syntax import Block, Call, Field, Literal, Node, Pipeline, Text, Variable, parse
from crungo.errors import UsageError
from crungo.parsing.values import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["NIL_LIST", "NIL_MAP", "Record", "Template", "plain"]


class Record(dict[str, Any]):
    """A dict whose keys are fixed. ``aliases`` are names of fields that templates know, and JSON does not."""

    aliases: ClassVar[Mapping[str, str]] = {}


class _Nil:
    def __init__(self, text: str) -> None:
        self.text = text

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


NIL_LIST = _Nil("[]")
NIL_MAP = _Nil("map[]")
_MISSING = _Nil("<no value>")


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, _Nil):
        return None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


class Template:
    """A parsed template; raises UsageError when it is malformed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = parse(text)

    def render(self, data: Any) -> str:
        """The text for one value; raises UsageError for fields and functions that there are not."""
        return _Run(self._text, data, _FUNCTIONS).whole(self._nodes)

    def header(self, titles: Mapping[str, str]) -> str:
        """The text for the titles of columns, on which functions have no effect."""
        same: dict[str, Callable[..., Any]] = dict.fromkeys(_FUNCTIONS, lambda *given: given[-1] if given else "")
        return _Run(self._text, Record(titles), same).whole(self._nodes)


class _Run:
    def __init__(self, text: str, data: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._text = text
        self._functions = functions
        self._variables: dict[str, Any] = {"": data}
        self._written: list[str] = []

    def whole(self, nodes: Sequence[Node]) -> str:
        self._write(nodes, self._variables[""])
        return "".join(self._written)

    def _write(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            if isinstance(node, Text):
                self._written.append(node.text)
            elif isinstance(node, Block):
                self._block(node, dot)
            else:
                value = self._value(node, dot)
                if not (isinstance(node, Pipeline) and node.variables):
                    self._written.append("<no value>" if value is None else _printed(value))

    def _block(self, block: Block, dot: Any) -> None:
        before = dict(self._variables)
        value = self._value(block.pipeline, dot)
        if not value:
            self._write(block.otherwise, dot)
        elif block.kind == "range":
            self._range(block, value)
        else:
            self._write(block.body, value if block.kind == "with" else dot)
        self._variables = before

    def _range(self, block: Block, value: Any) -> None:
        if isinstance(value, dict):
            pairs = list(value.items() if isinstance(value, Record) else sorted(value.items()))
        elif isinstance(value, (list, tuple)):
            pairs = list(enumerate(value))
        else:
            raise self._error(f"range cannot go over {quote(_printed(value))}")
        names = block.pipeline.variables
        for key, item in pairs:
            self._variables.update(zip(names, (key, item) if len(names) > 1 else (item,), strict=False))
            self._write(block.body, item)

    def _value(self, node: Node, dot: Any) -> Any:
        if isinstance(node, Literal):
            return node.value
        if isinstance(node, Variable):
            if node.name not in self._variables:
                raise self._error(f"undefined variable ${node.name}")
            return self._variables[node.name]
        if isinstance(node, Field):
            value = dot if node.base is None else self._value(node.base, dot)
            for name in node.path:
                value = self._field(value, name)
            return value
        if isinstance(node, Call):
            return self._call(node, dot, ())
        assert isinstance(node, Pipeline)
        return self._pipeline(node, dot)

    def _pipeline(self, pipeline: Pipeline, dot: Any) -> Any:
        value = self._value(pipeline.commands[0], dot)
        for command in pipeline.commands[1:]:
            if not isinstance(command, Call):
                raise self._error("only functions may follow a |")
            value = self._call(command, dot, (value,))
        if len(pipeline.variables) == 1:
            self._variables[pipeline.variables[0]] = value
        return value

    def _field(self, value: Any, name: str) -> Any:
        if isinstance(value, Record):
            name = value.aliases.get(name, name)
        if isinstance(value, dict) and name in value:
            return value[name]
        if isinstance(value, Record) or not (isinstance(value, (dict, _Nil)) or value is None):
            raise self._error(f"there is no field {name}")
        return _MISSING

    def _call(self, call: Call, dot: Any, piped: tuple[Any, ...]) -> Any:
        function = self._functions.get(call.name)
        if function is None:
            raise self._error(f"there is no function {quote(call.name)}")
        arguments = [*(self._value(argument, dot) for argument in call.arguments), *piped]
        try:
            return function(*arguments)
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
            given = " ".join(_printed(argument) for argument in arguments)
            raise self._error(f"{call.name} cannot be applied to {quote(given)}") from None

    def _error(self, why: str) -> UsageError:
        return UsageError(f"template {quote(self._text)}: {why}")


def _printed(value: Any) -> str:
    """The value as Go's ``%v`` prints it."""
    if value is None or isinstance(value, bool):
        return {None: "<nil>", True: "true", False: "false"}[value]
    if isinstance(value, _Nil):
        return value.text
    if isinstance(value, Record):
        return "{" + " ".join(_printed(inner) for inner in value.values()) + "}"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_printed(inner)}" for key, inner in sorted(value.items())) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_printed(inner) for inner in value) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, (dict, _Nil)):
            value = value.get(key, "") if isinstance(value, dict) else ""  # Go's zero value of a map of strings
        elif isinstance(key, int) and key >= 0:
            value = value[key]
        else:
            raise LookupError
    return value


def _slice(value: Any, *bounds: int) -> Any:
    start, end = (*bounds, *(0, len(value))[len(bounds) :])
    if not isinstance(value, (str, list, tuple)) or not 0 <= start <= end <= len(value):
        raise LookupError
    return value[start:end]


def _printf(form: str, *values: Any) -> str:
    rest = list(values)

    def one(found: re.Match[str]) -> str:
        flags, verb = found[1], found[2]
        if verb == "%":
            return "%"
        value = rest.pop(0)
        if verb in "dxo":
            return f"%{flags}{verb}" % int(value)
        if verb == "f":
            return f"%{flags}f" % float(value)
        if verb == "q":
            return to_json(_printed(value))
        return f"%{flags}s" % _printed(value)

    return re.sub(r"%([-+0 #]*[0-9]{0,3}(?:\.[0-9]{0,3})?)([%sdvqtxof])", one, form)


def _all(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _any(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _pad(text: str, before: int, after: int) -> str:
    return " " * min(before, 1000) + text + " " * min(after, 1000) if text else text


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _all,
    "or": _any,
    "not": lambda value: not value,
    "eq": lambda left, *right: any(left == other for other in right),
    "ne": lambda left, right: left != right,
    "lt": lambda left, right: left < right,
    "le": lambda left, right: left <= right,
    "gt": lambda left, right: left > right,
    "ge": lambda left, right: left >= right,
    "index": _index,
    "slice": _slice,
    "len": len,
    "print": lambda *values: "".join(map(_printed, values)),
    "println": lambda *values: " ".join(map(_printed, values)) + "\n",
    "printf": _printf,
    "json": lambda value: to_json(plain(value)),
    "join": lambda values, separator="": separator.join(values or ()),
    "split": lambda text, separator: text.split(separator),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "truncate": lambda text, length: text[:length],
    "pad": _pad,
}
