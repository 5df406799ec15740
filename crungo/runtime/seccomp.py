"""Seccomp profiles in the form of the OCI runtime specification: the default one, and those that users bring. Pure.

Invariant: the default profile allows a call by one rule or refuses it by another, never both, so that the order in
which a filter is built cannot matter; libseccomp refuses rules whose action is the default one, and there is none.
"""

from __future__ import annotations

import errno
import json
import re
from functools import lru_cache

from crungo.errors import UsageError
from crungo.parsing.values import quote, words
from crungo.runtime.seccomp_rules import ALLOWED, NAMESPACE_FLAGS, PERSONALITIES, REFUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from typing import Any

__all__ = ["default_profile", "user_profile"]

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_AF_VSOCK = 40
_ARCHITECTURES = {
    "amd64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "386": ["SCMP_ARCH_X86"],
    "arm64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "arm": ["SCMP_ARCH_ARM"],
}


@lru_cache(maxsize=16)
def default_profile(capabilities: frozenset[str], architecture: str) -> dict[str, Any]:
    """The default ``linux.seccomp`` object of a container with these capabilities (without ``CAP_``).

    The result is shared between callers and must not be changed.
    """
    allowed: list[str] = []
    refused = [name for group in REFUSED for name in group.calls]
    for group in ALLOWED:
        if group.architectures and architecture not in group.architectures:
            continue
        granted = not group.capabilities or not capabilities.isdisjoint(group.capabilities)
        (allowed if granted else refused).extend(group.calls)
    rules = [*_filtered_calls(capabilities)]
    if "SYS_ADMIN" in capabilities:
        allowed += ["clone", "clone3"]
    rules.append({"names": sorted(allowed), "action": _ALLOW})
    rules.append({"names": sorted(refused), "action": _ERRNO, "errnoRet": errno.EPERM})
    profile: dict[str, Any] = {"defaultAction": _ERRNO, "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}
    if architecture in _ARCHITECTURES:
        profile["architectures"] = _ARCHITECTURES[architecture]
    return profile


def _filtered_calls(capabilities: AbstractSet[str]) -> Iterator[dict[str, Any]]:
    """The rules of calls that depend on an argument; each pair of them excludes the other."""
    if "SYS_ADMIN" not in capabilities:
        yield _rule("clone", _ALLOW, value=sum(NAMESPACE_FLAGS), masked=0)
        for flag in NAMESPACE_FLAGS:
            yield _rule("clone", _ERRNO, value=flag, masked=flag)
    for persona in PERSONALITIES:
        yield _rule("personality", _ALLOW, value=persona)
    # A virtual socket reaches the hypervisor and other machines on it, whatever the network namespace. It falls to the
    # default action: on i386, libseccomp 2.5 takes the opposite rule for a duplicate of this one.
    yield _rule("socket", _ALLOW, value=_AF_VSOCK, op="SCMP_CMP_NE")


def _rule(name: str, action: str, *, value: int, op: str = "SCMP_CMP_EQ", masked: int | None = None) -> dict[str, Any]:
    """A rule on the first argument of a call: compared with ``value``, or ``value`` as a mask with ``masked``."""
    argument = {"index": 0, "value": value, "op": op}
    if masked is not None:
        argument = {"index": 0, "value": value, "valueTwo": masked, "op": "SCMP_CMP_MASKED_EQ"}
    rule: dict[str, Any] = {"names": [name], "action": action, "args": [argument]}
    if action == _ERRNO:
        rule["errnoRet"] = errno.EPERM
    return rule


_ACTIONS = frozenset(f"SCMP_ACT_{word}" for word in words("KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG"))
_OPERATORS = frozenset(f"SCMP_CMP_{word}" for word in words("NE LT LE EQ GE GT MASKED_EQ"))
_ARCHITECTURE = re.compile(r"SCMP_ARCH_[A-Z0-9_]{1,32}", re.ASCII)
_SYSCALL = re.compile(r"[a-zA-Z0-9_]{1,64}", re.ASCII)
_FLAG = re.compile(r"SECCOMP_FILTER_FLAG_[A-Z_]{1,32}", re.ASCII)
_KERNEL = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})", re.ASCII)
_LIMIT = 4 << 20  # bytes; docker's own profile has 20 thousand
_U64 = (1 << 64) - 1


def user_profile(
    text: str, capabilities: AbstractSet[str], *, architecture: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """A user's profile, docker's form or the runtime specification's, as a ``linux.seccomp`` object.

    docker's form adds ``archMap`` and, per rule, ``includes`` and ``excludes`` by capabilities, architecture and
    kernel; they are decided here.

    Raises:
        UsageError: it is not a seccomp profile.
    """
    if len(text) > _LIMIT:
        raise _bad("too large")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad("not JSON") from None
    profile = _object(parsed, "the profile")
    result: dict[str, Any] = {"defaultAction": _action(profile.get("defaultAction"), "defaultAction")}
    if (number := profile.get("defaultErrnoRet")) is not None:
        result["defaultErrnoRet"] = _number(number, "defaultErrnoRet", 4095)
    if flags := profile.get("flags"):
        result["flags"] = [_matched(flag, "flags", _FLAG) for flag in _array(flags, "flags")]
    if architectures := _profile_architectures(profile, architecture):
        result["architectures"] = architectures
    rules = []
    for position, entry in enumerate(_array(profile.get("syscalls"), "syscalls")):
        rule = _object(entry, f"syscalls[{position}]")
        if _applies(rule, capabilities, architecture, kernel):
            rules.append(_user_rule(rule, f"syscalls[{position}]"))
    result["syscalls"] = rules
    return result


def _profile_architectures(profile: dict[str, Any], architecture: str) -> list[str]:
    names = [
        _matched(name, "architectures", _ARCHITECTURE) for name in _array(profile.get("architectures"), "architectures")
    ]
    mapped = _array(profile.get("archMap"), "archMap")
    if names and mapped:
        raise _bad("architectures and archMap exclude each other")
    native = _ARCHITECTURES.get(architecture, [""])[0]
    for position, value in enumerate(mapped):
        entry = _object(value, f"archMap[{position}]")
        if _matched(entry.get("architecture"), "archMap", _ARCHITECTURE) == native:
            below = _array(entry.get("subArchitectures"), "subArchitectures")
            return [native, *(_matched(name, "subArchitectures", _ARCHITECTURE) for name in below)]
    return names


def _applies(rule: dict[str, Any], capabilities: AbstractSet[str], architecture: str, kernel: tuple[int, int]) -> bool:
    """docker's conditions: every capability included, none excluded; likewise architectures, and the least kernel."""
    includes = _object(rule.get("includes") or {}, "includes")
    excludes = _object(rule.get("excludes") or {}, "excludes")
    if not _capabilities(includes) <= capabilities or not _capabilities(excludes).isdisjoint(capabilities):
        return False
    if (wanted := _strings(includes, "arches")) and architecture not in wanted:
        return False
    if architecture in _strings(excludes, "arches"):
        return False
    if (least := includes.get("minKernel")) is not None and kernel < _kernel(least):
        return False
    return (least := excludes.get("minKernel")) is None or kernel < _kernel(least)


def _capabilities(condition: dict[str, Any]) -> set[str]:
    return {name.upper().removeprefix("CAP_") for name in _strings(condition, "caps")}


def _user_rule(rule: dict[str, Any], where: str) -> dict[str, Any]:
    names = _strings(rule, "names") or ([rule["name"]] if rule.get("name") else [])
    if not names:
        raise _bad(f"{where} names no system call")
    result: dict[str, Any] = {
        "names": [_matched(name, where, _SYSCALL) for name in names],
        "action": _action(rule.get("action"), where),
    }
    if (number := rule.get("errnoRet")) is not None:
        result["errnoRet"] = _number(number, f"{where}.errnoRet", 4095)
    if arguments := [_argument(value, where) for value in _array(rule.get("args"), f"{where}.args")]:
        result["args"] = arguments
    return result


def _argument(value: object, where: str) -> dict[str, Any]:
    argument = _object(value, f"{where}.args")
    op = argument.get("op")
    if not isinstance(op, str) or op not in _OPERATORS:
        raise _bad(f"{where}.args has an unknown operator {_shown(op)}")
    result = {
        "index": _number(argument.get("index", 0), f"{where}.args.index", 5),
        "value": _number(argument.get("value", 0), f"{where}.args.value", _U64),
        "op": op,
    }
    if "valueTwo" in argument:
        result["valueTwo"] = _number(argument["valueTwo"], f"{where}.args.valueTwo", _U64)
    return result


def _bad(why: str) -> UsageError:
    return UsageError(f"seccomp profile: {why}")


def _shown(value: object) -> str:
    return quote(value if isinstance(value, str) else repr(value)[:200])


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(f"{where} is not an object")
    return value


def _array(value: object, where: str) -> list[Any]:
    """The list; docker's profiles have null for an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise _bad(f"{where} is not a list")
    return value


def _strings(parent: dict[str, Any], key: str) -> list[str]:
    values = _array(parent.get(key), key)
    if not all(isinstance(value, str) for value in values):
        raise _bad(f"{key} holds something that is not a string")
    return values


def _number(value: object, where: str, maximum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise _bad(f"{where} is not a number from 0 to {maximum}")
    return value


def _action(value: object, where: str) -> str:
    if value == "SCMP_ACT_NOTIFY":
        raise _bad("SCMP_ACT_NOTIFY is not supported")
    if not isinstance(value, str) or value not in _ACTIONS:
        raise _bad(f"{where} has an unknown action {_shown(value)}")
    return value


def _matched(value: object, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _bad(f"{where} holds the malformed name {_shown(value)}")
    return value


def _kernel(value: object) -> tuple[int, int]:
    found = _KERNEL.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _bad(f"minKernel {_shown(value)} is not a version such as 4.8")
    return int(found[1]), int(found[2])
