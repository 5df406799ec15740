"""Values with named fields, like those of ``dataclasses``, at a cost that a command line can bear.

A frozen dataclass with slots takes half a millisecond to define, because its methods are written as text and compiled
anew in every process, and the module itself takes ten to import. crungo has some eighty such classes, and starts a
container in less. Here the methods are shared, and a class costs what a class costs.

    class Point(Record):
        x: int
        y: int = 0

    replace(Point(x=1), y=2)

Type checkers know such classes by PEP 681. Fields are given by name, unless the class says ``kw_only=False``; values
cannot be changed, unless it says ``frozen=False``. Invariant: a record has slots for its fields and nothing else.
Modules of records write ``from __future__ import annotations``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self, TypeVar, dataclass_transform

    T = TypeVar("T")
    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_: object) -> object:
        """What type checkers read; the real one comes with ``typing``, which takes six milliseconds to import."""
        return lambda kind: kind


__all__ = ["Record", "asdict", "field", "fields", "replace"]

MISSING: Any = object()


class Field:
    """What is known of a field beside its type; ``default`` is ``MISSING`` where one has to be given."""

    __slots__ = ("annotation", "compare", "default", "default_factory", "repr")

    def __init__(self, default: Any, default_factory: Any, compare: bool, show: bool) -> None:
        self.annotation = ""
        self.default = default
        self.default_factory = default_factory
        self.compare = compare
        self.repr = show


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    compare: bool = True,
    repr: bool = True,  # noqa: A002 - as in dataclasses
) -> Any:
    """A field with more to say than a default; the words are those of ``dataclasses.field``."""
    return Field(default, default_factory, compare, repr)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class RecordType(type):
    """Makes slots and a table of fields from a class's annotations."""

    __record_fields__: dict[str, Field]
    __record_order__: tuple[str, ...]

    def __new__(
        cls, name: str, bases: tuple[type, ...], space: dict[str, Any], *, frozen: bool = True, kw_only: bool = True
    ) -> RecordType:
        found: dict[str, Field] = {}
        for base in bases:
            found.update(getattr(base, "__record_fields__", {}))
        annotations = space.get("__annotations__", {})
        own = [key for key, kind in annotations.items() if not kind.startswith("ClassVar")]
        for key in own:
            given = space.pop(key, MISSING)
            found[key] = given if isinstance(given, Field) else Field(given, None, True, True)
            found[key].annotation = annotations[key]
        space["__slots__"] = (*own, *space.get("__slots__", ()))
        space["__record_fields__"] = found
        space["__record_order__"] = () if kw_only else tuple(found)
        if not frozen:
            space["__setattr__"] = object.__setattr__
            space["__delattr__"] = object.__delattr__
            space.setdefault("__hash__", None)  # as its value may change
        elif bases and "__eq__" in space:
            space.setdefault("__hash__", Record.__hash__)
        return super().__new__(cls, name, bases, space)

    def __init__(cls, *_: object, **__: object) -> None:
        pass

    @property
    def __signature__(cls) -> Any:
        """For ``help`` and ``inspect``."""
        from inspect import Parameter, Signature

        kind = Parameter.POSITIONAL_OR_KEYWORD if cls.__record_order__ else Parameter.KEYWORD_ONLY
        parameters = []
        for key, known in cls.__record_fields__.items():
            default = known.default if known.default_factory is None else known.default_factory()
            default = Parameter.empty if default is MISSING else default
            parameters.append(Parameter(key, kind, default=default, annotation=known.annotation))
        return Signature(parameters)


class Record(metaclass=RecordType):
    """The base of all records. Those of one class are equal when their fields are."""

    def __init__(self, *values: Any, **given: Any) -> None:
        kind = type(self)
        if values:
            order = kind.__record_order__
            if len(values) > len(order):
                raise TypeError(f"{kind.__name__}() takes {len(order)} positional arguments, not {len(values)}")
            for key, value in zip(order, values, strict=False):
                if key in given:
                    raise TypeError(f"{kind.__name__}() got multiple values for argument {key!r}")
                given[key] = value
        put = object.__setattr__
        left = len(given)
        for key, known in kind.__record_fields__.items():
            if key in given:
                put(self, key, given[key])
                left -= 1
            elif known.default is not MISSING:
                put(self, key, known.default)
            elif known.default_factory is not None:
                put(self, key, known.default_factory())
            else:
                raise TypeError(f"{kind.__name__}() missing a required argument: {key!r}")
        if left:
            unknown = next(key for key in given if key not in kind.__record_fields__)
            raise TypeError(f"{kind.__name__}() got an unexpected keyword argument {unknown!r}")
        self._check()

    def _check(self) -> None:
        """Refuse values that contradict each other, where a class has such."""

    def _compared(self) -> tuple[Any, ...]:
        return tuple(getattr(self, key) for key, known in type(self).__record_fields__.items() if known.compare)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def __repr__(self) -> str:
        shown = (f"{key}={getattr(self, key)!r}" for key, known in type(self).__record_fields__.items() if known.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: use replace()")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be removed")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _remade, (type(self), _values(self))

    def __replace__(self, **changes: Any) -> Self:
        return replace(self, **changes)


def replace(record: R, /, **changes: Any) -> R:
    """A copy with some fields changed; what ``copy.replace`` does since Python 3.13."""
    return type(record)(**{**_values(record), **changes})


def asdict(record: Record) -> dict[str, Any]:
    """Field by field, records among the values likewise."""
    return {key: asdict(value) if isinstance(value, Record) else value for key, value in _values(record).items()}


def fields(kind: type[Record]) -> Mapping[str, Field]:
    """The fields of a class, in their order."""
    return kind.__record_fields__


def _values(record: Record) -> dict[str, Any]:
    return {key: getattr(record, key) for key in type(record).__record_fields__}


def _remade(kind: type[R], values: dict[str, Any]) -> R:
    return kind(**values)
