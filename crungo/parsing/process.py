"""What concerns the container's first process: user, working directory, entrypoint, stop signal, limits.

Invariant: user and group *names* are only checked for their form here; they mean something in the rootfs alone.
"""

from __future__ import annotations

import json
import posixpath
import re

from crungo.config import Ulimit
from crungo.parsing.values import bad_value, parse_int, words

__all__ = ["parse_entrypoint", "parse_group", "parse_signal", "parse_ulimit", "parse_user", "parse_workdir"]

MAXIMUM_ID = (1 << 32) - 2  # the last one is (uid_t)-1, which means "no change"
_NAME = r"[^\s:,/\0]{1,256}"  # what passwd(5) could hold in a field, not what useradd would accept
_RLIMITS = frozenset(
    words("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")
)
_REALTIME = r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?"
_ULIMIT = r"([a-z]+)=(-?[0-9]+)(?::(-?[0-9]+))?"
_RLIMIT_MAXIMUM = (1 << 63) - 1


def parse_user(text: str, *, flag: str = "--user") -> str | None:
    """``user``, ``uid``, ``user:group`` or ``uid:gid``; ``None`` for the empty text: the image's user."""
    if not text:
        return None
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise bad_value(flag, text, "a part is empty; expected user[:group]")
    for part in (user, group):
        _check_name(part, flag=flag, text=text)
    return text


def parse_group(text: str, *, flag: str = "--group-add") -> str:
    """A group name or id."""
    if not text:
        raise bad_value(flag, text, "empty; expected a group name or id")
    _check_name(text, flag=flag, text=text)
    return text


def _check_name(part: str, *, flag: str, text: str) -> None:
    if not part:
        return
    if not re.fullmatch(_NAME, part):
        raise bad_value(flag, text, "not a user or group; expected a name or an id")
    if part.isascii() and part.lstrip("-").isdigit() and (part.startswith("-") or int(part[:20]) > MAXIMUM_ID):
        raise bad_value(flag, text, f"id out of range; expected 0 to {MAXIMUM_ID}")


def parse_workdir(text: str, *, flag: str = "--workdir") -> str | None:
    """An absolute path of the container, normalised; ``None`` for the empty text: the image's."""
    if not text:
        return None
    if not text.startswith("/") or "\0" in text:
        raise bad_value(flag, text, "not an absolute path; expected one that starts with /")
    return "/" + posixpath.normpath(text).lstrip("/")


def parse_entrypoint(text: str, *, flag: str = "--entrypoint") -> tuple[str, ...]:
    """One program, or a JSON list of strings as podman takes it; () for the empty text, which clears the image's."""
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        program = json.loads(text)
    except (ValueError, RecursionError):
        return (text,)  # a program whose name starts with a bracket: `[` is one
    if not isinstance(program, list) or not all(isinstance(word, str) for word in program):
        raise bad_value(flag, text, "a JSON list of something else than strings")
    return tuple(program)


def parse_signal(text: str, *, flag: str = "--stop-signal") -> int:
    """A signal's number from its number or name, with or without ``SIG``, either case, ``RTMIN+n``, ``RTMAX-n``."""
    import signal  # an enum of seventy members, needed only when the flag is given

    if text.isascii() and text.isdigit():
        return parse_int(text, flag=flag, minimum=1, maximum=signal.NSIG - 1)
    name = text.upper().removeprefix("SIG")
    if found := re.fullmatch(_REALTIME, name):
        base = signal.SIGRTMIN if found[1] == "MIN" else signal.SIGRTMAX
        number = base + int(f"{found[2] or '+'}{found[3] or 0}")
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return int(number)
    elif (member := signal.Signals.__members__.get(f"SIG{name}")) is not None:
        return int(member)
    raise bad_value(flag, text, "unknown signal; expected a name such as SIGINT, RTMIN+3, or a number")


def parse_ulimit(text: str, *, flag: str = "--ulimit") -> Ulimit:
    """``name=soft[:hard]``; -1 is unlimited; without a hard limit it is the soft one."""
    found = re.fullmatch(_ULIMIT, text)
    if found is None:
        raise bad_value(flag, text, "not a limit; expected name=soft[:hard], such as nofile=1024:4096")
    name = found[1]
    if name not in _RLIMITS:
        raise bad_value(flag, text, f"unknown limit {name}; expected one of {', '.join(sorted(_RLIMITS))}")
    soft = parse_int(found[2], flag=f"{flag} {name}", minimum=-1, maximum=_RLIMIT_MAXIMUM)
    hard = soft if found[3] is None else parse_int(found[3], flag=f"{flag} {name}", minimum=-1, maximum=_RLIMIT_MAXIMUM)
    if hard != -1 and (soft == -1 or soft > hard):
        raise bad_value(flag, text, "the soft limit is above the hard limit")
    return Ulimit(name=name, soft=soft, hard=hard)
