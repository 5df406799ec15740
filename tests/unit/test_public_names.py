"""What is imported from ``crungo`` itself: each name is there, for programs and for type checkers alike."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import crungo
from crungo import Container, Engine, Pool


@pytest.mark.parametrize("name", crungo.__all__)
def test_each_is_there(name: str) -> None:
    assert getattr(crungo, name) is not None


def test_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(crungo.__file__).read_text())
    seen = {
        (node.module, alias.asname)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(place, name) for name, place in crungo._PLACES.items()}


@pytest.mark.parametrize(
    "call",
    [
        *(Engine.__init__, Engine.run, Engine.container, Engine.pool, Engine.pull, Engine.images, Engine.remove),
        *(Container.run, Container.exec, Container.stats, Container.output, Pool.run, Pool.container),
    ],
)
def test_what_a_call_takes_and_gives_can_be_named(call: object) -> None:
    """Policies are literals, and keywords are typed by what only a type checker reads."""
    words = {word for text in call.__annotations__.values() for word in re.findall(r"\b[A-Z]\w+", text)}
    standard = {"AsyncIterator", "Iterable", "Mapping", "None", "PathLike", "Sequence", "Unpack"}
    inner = {"ContainerFields", "ExecFields", "PullPolicy", "SpawnerProcess"}
    assert words - standard - inner <= set(crungo.__all__)
