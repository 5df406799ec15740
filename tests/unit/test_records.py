"""Records: named values without the cost of dataclasses."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import ClassVar

import pytest

from crungo.records import Record, asdict, field, fields, replace


class Point(Record):
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)
    note: str = field(default="", compare=False, repr=False)
    origin: ClassVar[int] = 7

    def _check(self) -> None:
        if self.x < 0:
            raise ValueError("x")


class Line(Record, kw_only=False):
    start: Point
    end: Point | None = None


class Counter(Record, frozen=False):
    count: int = 0


class Point3(Point):
    z: int = 3


def test_values_are_given_by_name_and_have_defaults() -> None:
    point = Point(x=1, y=5)
    assert (point.x, point.y, point.tags, point.note, point.origin) == (1, 5, [], "", 7)
    assert Point(x=1).tags is not Point(x=1).tags
    assert Line(point, end=None).start is point
    assert Point3(x=1).z == 3


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Point, "missing a required argument: 'x'"),
        (lambda: Point(x=1, q=2), "unexpected keyword argument 'q'"),  # type: ignore[call-arg]
        (lambda: Point(1), "takes 0 positional arguments"),  # type: ignore[call-arg]
        (lambda: Line(Point(x=1), start=Point(x=1)), "multiple values for argument 'start'"),  # type: ignore[misc]
        (lambda: replace(Point(x=1), q=2), "unexpected keyword argument 'q'"),
    ],
)
def test_wrong_arguments_are_type_errors(make: type, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        make()


def test_values_are_checked_also_when_replaced() -> None:
    with pytest.raises(ValueError, match="x"):
        replace(Point(x=1), x=-1)


def test_equality_and_hash_are_those_of_the_compared_fields() -> None:
    assert Point(x=1, note="a") == Point(x=1, note="b") != Point(x=2)
    assert Point3(x=1) != Point(x=1)
    line = Line(Point(x=1, tags=["a"]))
    assert line == Line(Point(x=1, tags=["a"]))
    first, second = Line(Point(x=1), None), Line(Point(x=1))
    assert first == second
    with pytest.raises(TypeError):
        hash(Counter())
    assert hash(Line(start=None)) == hash(Line(start=None))  # type: ignore[arg-type]


def test_frozen_and_without_other_attributes() -> None:
    point, counter = Point(x=1), Counter()
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    counter.count = 3
    assert counter == Counter(count=3)
    with pytest.raises(AttributeError):
        counter.other = 1


def test_replaced_copied_and_shown() -> None:
    point = Point(x=1, tags=["a"], note="secret")
    assert replace(point, y=9) == Point(x=1, y=9, tags=["a"])
    assert replace(point, y=9).note == "secret"
    assert repr(point) == "Point(x=1, y=2, tags=['a'])"
    for twin in (copy.deepcopy(point), copy.copy(point), pickle.loads(pickle.dumps(point))):
        assert twin == point
        assert twin.note == "secret"
    assert asdict(Line(point)) == {"start": {"x": 1, "y": 2, "tags": ["a"], "note": "secret"}, "end": None}
    assert list(fields(Point3)) == ["x", "y", "tags", "note", "z"]


def test_the_signature_is_told() -> None:
    assert str(inspect.signature(Point)) == "(*, x: 'int', y: 'int' = 2, tags: 'list[str]' = [], note: 'str' = '')"


def test_a_record_imports_nothing() -> None:
    script = "import sys; before = set(sys.modules); import crungo.records; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", script], stdout=subprocess.PIPE, check=True, text=True)
    assert set(done.stdout.split()) <= {"crungo", "crungo.records", "__future__"}
