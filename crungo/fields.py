"""The keywords of calls as the values of :mod:`crungo.config`: what a program writes, in any form that is natural.

Sizes, times and numbers may be numbers or the text of the command line's flags (``"256m"``, ``"1m30s"``); lists may
hold values or that text. Text goes through :mod:`crungo.parsing`, so that it means, and is refused with, the same as on
the command line. Pure, apart from the environment and the working directory, which ``configure`` reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from crungo.config import ContainerConfig, Device, ExecConfig, Mount, Ulimit
from crungo.errors import UsageError
from crungo.records import Record, fields, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from crungo.config import Network, PullPolicy

__all__ = [
    "ContainerFields",
    "ExecFields",
    "arguments",
    "check_input",
    "configure",
    "configure_exec",
    "duration",
    "limits_of",
    "text_of",
]

Words = Sequence[str] | Iterable[str]
Pairs = Mapping[str, str] | Iterable[str]


class ContainerFields(TypedDict, total=False):
    """The keywords of calls that make a container: the fields of :class:`crungo.ContainerConfig`, and two more.

    ``volumes`` and ``tmpfs`` take the text of ``-v`` and ``--tmpfs`` and are added to ``mounts``, whose entries may be
    text of ``--mount``. In ``env``, the value ``None`` unsets a variable; in a list, ``"X"`` copies the caller's.
    """

    rootfs: str | os.PathLike[str] | None
    entrypoint: str | Words | None
    env: Mapping[str, str | None] | Iterable[str]
    user: str | int | None
    group_add: Iterable[str | int]
    workdir: str | os.PathLike[str] | None
    hostname: str | None
    name: str | None
    labels: Pairs
    tty: bool
    stdin: bool
    size: tuple[int, int] | None
    network: Network
    add_host: Iterable[str | tuple[str, str]]
    dns: Iterable[str]
    mounts: Iterable[str | Mount]
    volumes: Iterable[str]
    tmpfs: Iterable[str]
    devices: Iterable[str | Device]
    read_only: bool
    shm_size: int | str
    memory: int | str | None
    memory_swap: int | str | None
    cpus: float | str | None
    pids_limit: int | str | None
    ulimits: Iterable[str | Ulimit]
    sysctls: Pairs
    cap_add: Iterable[str]
    cap_drop: Iterable[str]
    privileged: bool
    no_new_privileges: bool
    seccomp: str | None
    unmask: bool
    init: bool
    stop_signal: int | str | None
    stop_timeout: float | str
    pull: PullPolicy
    platform: str | None


class ExecFields(TypedDict, total=False):
    """The keywords of calls that start a further process: the fields of :class:`crungo.ExecConfig`.

    In ``env``, the value ``None`` unsets a variable; in a list, ``"X"`` copies the caller's.
    """

    env: Mapping[str, str | None] | Iterable[str]
    user: str | int | None
    workdir: str | os.PathLike[str] | None
    tty: bool
    stdin: bool
    size: tuple[int, int] | None
    privileged: bool


def configure(
    image: str | ContainerConfig, command: Words | None = None, given: Mapping[str, Any] | None = None
) -> ContainerConfig:
    """The configuration that the arguments of a call name: an image and fields, or a whole one and changes to it.

    Raises:
        UsageError: an unknown keyword, or a value that is malformed or of a wrong type.
    """
    values = _converted(given or {}, _KNOWN, base=image if isinstance(image, ContainerConfig) else None)
    if command is not None:
        values["command"] = arguments(command, "command")
    if isinstance(image, ContainerConfig):
        return replace(image, **values)
    return ContainerConfig(image=text_of(image, "image"), **values)


def configure_exec(command: Words, given: Mapping[str, Any]) -> ExecConfig:
    """The configuration of a further process; errors as for :func:`configure`."""
    values = _converted(given, _KNOWN_EXEC, base=None)
    return ExecConfig(command=arguments(command, "command"), **values)


def arguments(value: object, name: str) -> tuple[str, ...]:
    """A command line as a list; a text is refused, because splitting it is a shell's work."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise UsageError(f"{name}: a list of arguments is expected, not {value!r:.100}")
    return tuple(text_of(word, name) for word in value)


def text_of(value: object, name: str) -> str:
    """A text, or a path as text."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise UsageError(f"{name}: a text is expected, not {value!r:.100}")
    return value


def check_input(value: object, *, tty: bool = False) -> None:
    """Refuse as the input of a program what is not bytes, before there is a program.

    Raises:
        UsageError: it is something else, or the program gets a terminal; also what to do.
    """
    if value is None:
        return
    if tty:  # which has no end that could be sent
        raise UsageError("input: a program with a terminal has none; hold its block, and send to its `terminal`")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return
    if isinstance(value, str):
        raise UsageError("input: bytes are expected, not a text; its encode() makes them")
    raise UsageError(f"input: bytes are expected, not {value!r:.100}")


def _number(value: object, name: str) -> str:
    """A number as the text that flags take, or such a text."""
    if isinstance(value, float) and value == value and abs(value) < 1e15:  # noqa: PLR0124 - not a number is unequal to itself
        return f"{value:.9f}".rstrip("0").removesuffix(".")
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UsageError(f"{name}: a number is expected, not {value!r:.100}")
    return str(value)


def duration(value: object, name: str) -> float:
    """Seconds, from a number or from a text such as ``1m30s``."""
    from crungo.parsing.values import parse_duration

    return parse_duration(_number(value, name), flag=name)


def limits_of(**given: float | str | None) -> dict[str, float]:
    """Limits to change: ``memory``, ``memory_swap`` (bytes), ``cpus``, ``pids_limit``; -1 where there is to be none.

    Raises:
        UsageError: a value is malformed.
    """
    found = {}
    for name, value in given.items():
        if value is not None:
            limit = -1 if str(value) == "-1" else _CONVERTERS[name](value, name)
            found[name] = -1 if limit is None else limit
    return found


def _converted(given: Mapping[str, Any], known: frozenset[str], base: ContainerConfig | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"unknown keyword {name!r:.100}{_suggestion(name, known)}")
        if value is None:
            if name in _NONE:
                values[name] = None
        elif name not in _MOUNTS:
            values[name] = _CONVERTERS[name](value, name)
    if any(given.get(name) is not None for name in _MOUNTS):
        before = base.mounts if base is not None and "mounts" not in given else ()
        values["mounts"] = (*before, *_mounts(given))
    return values


def _suggestion(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # on the way to an error, time is of no matter

    found = {_ELSEWHERE.get(name, "")} & set(known) or get_close_matches(name, sorted(known), n=1)
    return f": did you mean {next(iter(found))!r}?" if found else ""


def _mounts(given: Mapping[str, Any]) -> list[Mount]:
    from crungo.parsing.mounts import check_targets, parse_mount, parse_tmpfs, parse_volume

    cwd = os.getcwd()
    found = [
        entry if isinstance(entry, Mount) else parse_mount(text_of(entry, "mounts"), cwd=cwd, flag="mounts")
        for entry in _items(given.get("mounts") or (), "mounts")
    ]
    volumes, tmpfs = (_items(given.get(name) or (), name) for name in ("volumes", "tmpfs"))
    found += [parse_volume(text_of(entry, "volumes"), cwd=cwd, flag="volumes") for entry in volumes]
    found += [parse_tmpfs(text_of(entry, "tmpfs"), flag="tmpfs") for entry in tmpfs]
    check_targets(found)
    return found


def _items(value: object, name: str) -> Iterable[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UsageError(f"{name}: a list is expected, not {value!r:.100}")
    return value


def _pairs(value: object, name: str, parse: Callable[[str], tuple[str, Any]], *, none: bool = False) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict(parse(text_of(entry, name)) for entry in _items(value, name))
    for key, content in value.items():
        text_of(key, name)
        if not (none and content is None):
            text_of(content, f"{name} {key}")
    return dict(value)


def _env(value: object, name: str) -> dict[str, str | None]:
    from crungo.parsing.environment import parse_env

    return _pairs(value, name, lambda text: parse_env(text, os.environ, flag=name), none=True)


def _labels(value: object, name: str) -> dict[str, str]:
    from crungo.parsing.environment import parse_label

    return _pairs(value, name, lambda text: parse_label(text, flag=name))


def _sysctls(value: object, name: str) -> dict[str, str]:
    from crungo.parsing.host import parse_sysctl

    return _pairs(value, name, lambda text: parse_sysctl(text, flag=name))


def _path(value: object, name: str) -> str:
    return os.path.abspath(text_of(value, name))


def _terminal_size(value: object, name: str) -> tuple[int, int]:
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) and 0 < n < 65536 for n in value)):
        raise UsageError(f"{name}: (columns, rows) is expected, not {value!r:.100}")
    return value


def _switch(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: True or False is expected, not {value!r:.100}")
    return value


def _capabilities(value: object, name: str) -> tuple[str, ...]:
    from crungo.parsing.host import parse_capability

    return tuple(word for text in _items(value, name) for word in parse_capability(text_of(text, name), flag=name))


def _entrypoint(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        from crungo.parsing.process import parse_entrypoint

        return parse_entrypoint(value, flag=name)
    return arguments(value, name)


def _one(module: str, function: str) -> Callable[[object, str], Any]:
    """A converter of text or number by one of ``crungo.parsing``'s functions, imported when it is needed."""

    def convert(value: object, name: str) -> Any:
        from importlib import import_module

        parse = getattr(import_module(f"crungo.parsing.{module}"), function)
        return parse(_number(value, name) if isinstance(value, (int, float)) else text_of(value, name), flag=name)

    return convert


def _each(module: str, function: str, kind: type) -> Callable[[object, str], Any]:
    """The same for each of a list, whose entries may also be values of ``kind`` already."""
    one = _one(module, function)
    return lambda value, name: tuple(e if isinstance(e, kind) else one(e, name) for e in _items(value, name))


def _listed(kind: type[Record]) -> frozenset[str]:
    return frozenset(fields(kind)) - {"image", "command"}


_MOUNTS = frozenset(("mounts", "volumes", "tmpfs"))
_KNOWN = _listed(ContainerConfig) | _MOUNTS
_KNOWN_EXEC = _listed(ExecConfig)
# What flags, subprocess and others call a field that has another name here.
_ELSEWHERE = {
    "cwd": "workdir",
    "environment": "env",
    "interactive": "stdin",
    "mem_limit": "memory",
    "net": "network",
    "security_opt": "seccomp",
    "terminal": "tty",
}
# Where None is a value; elsewhere it says the same as leaving the keyword out.
_NONE = frozenset(name for name, field in fields(ContainerConfig).items() if field.default is None) | {"pids_limit"}
_CONVERTERS: dict[str, Callable[[object, str], Any]] = {
    "rootfs": _path,
    "entrypoint": _entrypoint,
    "env": _env,
    "user": _one("process", "parse_user"),
    "group_add": _each("process", "parse_group", tuple),
    "workdir": _one("process", "parse_workdir"),
    "hostname": _one("network", "parse_hostname"),
    "name": text_of,
    "labels": _labels,
    "size": _terminal_size,
    "network": _one("network", "parse_network"),
    "add_host": _each("network", "parse_add_host", tuple),
    "dns": _each("network", "parse_dns", tuple),
    "devices": _each("host", "parse_device", Device),
    "shm_size": _one("values", "parse_shm_size"),
    "memory": _one("values", "parse_memory"),
    "memory_swap": _one("values", "parse_memory_swap"),
    "cpus": _one("values", "parse_cpus"),
    "pids_limit": _one("values", "parse_pids_limit"),
    "ulimits": _each("process", "parse_ulimit", Ulimit),
    "sysctls": _sysctls,
    "cap_add": _capabilities,
    "cap_drop": _capabilities,
    "seccomp": text_of,
    "stop_signal": _one("process", "parse_signal"),
    "stop_timeout": duration,
    "pull": _one("host", "parse_pull"),
    "platform": _one("host", "parse_platform"),
    **dict.fromkeys(("tty", "stdin", "read_only", "privileged", "no_new_privileges", "unmask", "init"), _switch),
}
