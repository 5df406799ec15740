"""The syntax of Go's text/template, as far as formats on command lines go: from text to a tree. Pure.

Known are fields and paths, ``.``, ``$`` and variables, literals, calls, pipes, parentheses, comments, trimming dashes,
the blocks ``if``, ``with``, ``range`` with ``else``. Not known are templates in templates, ``break`` and ``continue``.
"""

from __future__ import annotations

import re

from crungo.errors import UsageError
from crungo.parsing.values import quote
from crungo.records import Record

__all__ = ["Block", "Call", "Field", "Literal", "Node", "Pipeline", "Text", "Variable", "parse"]

_STRING = r'"(?:\\.|[^"\\\n])*"|`[^`]*`'
_ACTION = rf"\{{\{{(-(?=\s))?((?:/\*.*?\*/|{_STRING}|[^\"`}}]|\}}(?!\}}))*?)(?:(?<=\s)(-))?\}}\}}"
_TOKEN = rf"""(?x)\s*(?:
    (?P<string>{_STRING}) | (?P<number>-?[0-9]+(?:\.[0-9]+)?) | (?P<field>(?:\.[A-Za-z_][A-Za-z_0-9]*)+)
  | (?P<variable>\$[A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)*)
  | (?P<word>[A-Za-z_][A-Za-z_0-9]*) | (?P<mark>:=|[.,|()=])
)"""
_DEEPEST = 50


class Text(Record, kw_only=False):
    """Text outside of actions."""

    text: str


class Literal(Record, kw_only=False):
    """A string, number, boolean or nil."""

    value: str | float | bool | None


class Field(Record, kw_only=False):
    """A path below ``base``, or below the dot where that is None; an empty path is the dot itself."""

    base: Node | None
    path: tuple[str, ...]


class Variable(Record, kw_only=False):
    """``$name``; the empty name is what the template was given."""

    name: str


class Call(Record, kw_only=False):
    """A function and its arguments."""

    name: str
    arguments: tuple[Node, ...]


class Pipeline(Record, kw_only=False):
    """Commands, each of which gets the last one's value as its last argument; perhaps assigned to variables."""

    commands: tuple[Node, ...]
    variables: tuple[str, ...] = ()


class Block(Record, kw_only=False):
    """``if``, ``with`` or ``range``."""

    kind: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


Node = Text | Literal | Field | Variable | Call | Pipeline | Block


def parse(text: str) -> tuple[Node, ...]:
    """The tree of a template.

    Raises:
        UsageError: it is malformed.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._pieces = _pieces(text)
        self._tokens: list[tuple[str, str]] = []
        self._depth = 0

    def whole(self) -> tuple[Node, ...]:
        nodes, end = self._nodes()
        if end is not None:
            raise self._error(f"unexpected {end}")
        return nodes

    def _nodes(self) -> tuple[tuple[Node, ...], str | None]:
        """Nodes up to the end, or to the ``else`` or ``end`` that is returned with them."""
        found: list[Node] = []
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, Text):
                found.append(piece)
                continue
            self._tokens = self._read_tokens(piece)
            word = self._tokens[0][1] if self._tokens and self._tokens[0][0] == "word" else ""
            if word in ("else", "end"):
                self._tokens.pop(0)
                return tuple(found), word
            if word in ("if", "with", "range"):
                self._tokens.pop(0)
                found.append(self._block(word))
            elif self._tokens:
                found.append(self._action())
            elif not piece.lstrip().startswith("/*"):
                raise self._error("an action is empty")
        return tuple(found), None

    def _action(self) -> Pipeline:
        pipeline = self._pipeline()
        if self._tokens:
            raise self._error(f"unexpected {quote(self._tokens[0][1])}")
        return pipeline

    def _block(self, kind: str) -> Block:
        self._enter()
        pipeline = self._action()
        body, end = self._nodes()
        otherwise: tuple[Node, ...] = ()
        if end == "else":
            if self._tokens:  # else if, else with
                nested = self._tokens.pop(0)[1]
                if nested not in ("if", "with"):
                    raise self._error(f"unexpected {quote(nested)}")
                otherwise, end = (self._block(nested),), "end"
            else:
                otherwise, end = self._nodes()
        if end != "end":
            raise self._error(f"{kind} has no end")
        self._depth -= 1
        return Block(kind, pipeline, body, otherwise)

    def _pipeline(self) -> Pipeline:
        variables: list[str] = []
        if any(token == ("mark", ":=") for token in self._tokens) and self._tokens[0][0] == "variable":
            while (token := self._take()) != ("mark", ":="):
                if token[0] == "variable" and "." not in token[1]:
                    variables.append(token[1][1:])
                elif token != ("mark", ","):
                    raise self._error(f"unexpected {quote(token[1])}")
        commands = [self._command()]
        while self._tokens and self._tokens[0] == ("mark", "|"):
            self._tokens.pop(0)
            commands.append(self._command())
        return Pipeline(tuple(commands), tuple(variables))

    def _command(self) -> Node:
        kind, word = self._tokens[0] if self._tokens else ("", "")
        if kind == "word" and word not in ("true", "false", "nil"):
            self._tokens.pop(0)
            arguments = []
            while self._tokens and self._tokens[0] not in (("mark", "|"), ("mark", ")")):
                arguments.append(self._operand())
            return Call(word, tuple(arguments))
        operand = self._operand()
        if self._tokens and self._tokens[0] not in (("mark", "|"), ("mark", ")")):
            raise self._error(f"unexpected {quote(self._tokens[0][1])}")
        return operand

    def _operand(self) -> Node:
        kind, word = self._take()
        if kind in ("string", "number"):
            return Literal(_literal(word))
        if kind == "field":
            return Field(None, tuple(word[1:].split(".")))
        if kind == "variable":
            name, *path = word[1:].split(".")
            return Field(Variable(name), tuple(path)) if path else Variable(name)
        if kind == "word":
            constants = {"true": True, "false": False, "nil": None}
            return Literal(constants[word]) if word in constants else Call(word, ())
        if word == ".":
            return Field(None, ())
        if word == "(":
            return self._parentheses()
        raise self._error(f"unexpected {quote(word)}")

    def _parentheses(self) -> Node:
        self._enter()
        inner = self._pipeline()
        if self._take() != ("mark", ")"):
            raise self._error("a parenthesis is not closed")
        self._depth -= 1
        if self._tokens and self._tokens[0][0] == "field":
            return Field(inner, tuple(self._tokens.pop(0)[1][1:].split(".")))
        return inner

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error("it is nested too deeply")

    def _take(self) -> tuple[str, str]:
        if not self._tokens:
            raise self._error("an action ends too early")
        return self._tokens.pop(0)

    def _read_tokens(self, action: str) -> list[tuple[str, str]]:
        if action.strip().startswith("/*"):
            return []
        found, position, action = [], 0, action.rstrip()
        while position < len(action):
            token = re.compile(_TOKEN).match(action, position)
            if token is None:
                raise self._error(f"unexpected {quote(action[position:].strip()[:1])}")
            assert token.lastgroup is not None
            found.append((token.lastgroup, token[token.lastgroup]))
            position = token.end()
        return found

    def _error(self, why: str) -> UsageError:
        return UsageError(f"template {quote(self._text)}: {why}")


def _pieces(text: str) -> list[Text | str]:
    """Text and actions in turn; dashes at the braces have taken the blanks beside them away."""
    found: list[Text | str] = []
    position, trim = 0, False
    for action in re.finditer(_ACTION, text, re.DOTALL):
        before = text[position : action.start()]
        before = before.lstrip() if trim else before
        found += [Text(before.rstrip() if action[1] else before), action[2]]
        position, trim = action.end(), bool(action[3])
    rest = text[position:]
    if "{{" in rest:
        raise UsageError(f"template {quote(text)}: an action is not closed")
    return [*found, Text(rest.lstrip() if trim else rest)]


def _literal(literal: str) -> str | float:
    if literal[0] not in '"`':
        return float(literal) if "." in literal else int(literal[:20])
    if literal.startswith("`"):
        return literal[1:-1]
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), literal[1:-1])
