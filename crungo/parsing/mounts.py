"""``--volume``, ``--mount`` and ``--tmpfs`` to ``Mount`` values.

Invariants of every mount that leaves here: ``target`` is absolute, normalised and not ``/``; the source of a bind
is absolute and normalised; ``options`` hold no word twice and no two that contradict each other. Whether a source
exists is asked later, where the system may be touched.
"""

from __future__ import annotations

import posixpath
import re

from crungo.config import Mount
from crungo.errors import UsageError
from crungo.parsing.values import bad_value, parse_bool, parse_size, quote, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["check_targets", "parse_mount", "parse_tmpfs", "parse_volume"]

# Options of which at most one may be given; the first of each is what applies when none is.
_ACCESS = ("rw", "ro")
_PROPAGATION = ("rprivate", "private", "rshared", "shared", "rslave", "slave")
_RECURSION = ("rbind", "bind")
_SWITCHES = (("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"))
# Accepted and without effect: SELinux relabelling (z, Z) where there is no SELinux, and docker's hints for macOS.
_IGNORED = frozenset(("z", "Z", "cached", "delegated", "consistent"))
_LATER = {"O": "overlay volumes", "U": "changing the owner of a volume"}

_TMPFS_WORDS = frozenset(
    words(
        "rw ro exec noexec suid nosuid dev nodev sync async dirsync atime noatime diratime nodiratime relatime "
        "norelatime strictatime nostrictatime noswap"
    )
)
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")
_TMPFS_VALUES = {
    "mode": r"[0-7]{1,5}",
    "uid": r"[0-9]{1,10}",
    "gid": r"[0-9]{1,10}",
    "nr_inodes": r"(?ai)[0-9]{1,15}[kmg]?",
    "nr_blocks": r"(?ai)[0-9]{1,15}[kmg]?",
    "huge": r"never|always|within_size|advise",
}
_PERCENT = r"[0-9]{1,3}%"


def parse_volume(text: str, *, cwd: str, flag: str = "--volume") -> Mount:
    """``host:container[:options]``; a relative host path starts from ``cwd``, ``~`` is not expanded."""
    parts = text.split(":")
    if len(parts) == 1:
        raise bad_value(flag, text, "no container path; expected host-path:container-path[:options]")
    if len(parts) > 3:
        raise bad_value(flag, text, "too many colons; expected host-path:container-path[:options]")
    if not all(parts):
        raise bad_value(flag, text, "a part is empty; expected host-path:container-path[:options]")
    given = parts[2].split(",") if len(parts) == 3 else []
    return Mount(
        type="bind",
        source=_source(parts[0], cwd=cwd, flag=flag, text=text),
        target=_target(parts[1], flag=flag, text=text),
        options=_bind_options(given, flag=flag, text=text),
    )


def parse_mount(text: str, *, cwd: str, flag: str = "--mount") -> Mount:
    """``type=bind|tmpfs,source=…,target=…[,…]`` with docker's keys; fields may be quoted as in CSV."""
    keys = _mount_keys(text, flag)
    kind = keys.pop("type", "volume")
    if kind not in ("bind", "tmpfs"):
        if kind == "volume":
            raise bad_value(flag, text, "named volumes are not supported; expected type=bind with a source path")
        raise bad_value(flag, text, f"type {quote(kind)} is not supported; expected type=bind or type=tmpfs")
    if "target" not in keys:
        raise bad_value(flag, text, "no target; expected target=/path")
    target = _target(keys.pop("target"), flag=flag, text=text)
    given = [_access(keys.pop("readonly", "false"), keys.pop("rw", None), flag=flag, text=text)]
    if kind == "bind":
        if "source" not in keys:
            raise bad_value(flag, text, "no source; expected source=/path")
        source = _source(keys.pop("source"), cwd=cwd, flag=flag, text=text, bare=True)
        given += _bind_key_options(keys, flag=flag, text=text)
        options = _bind_options(given, flag=flag, text=text)
    else:
        source = ""
        if "source" in keys:
            raise bad_value(flag, text, "a tmpfs has no source")
        if size := keys.pop("tmpfs-size", ""):
            given.append(f"size={size}")
        if mode := keys.pop("tmpfs-mode", ""):
            given.append(f"mode={mode}")
        options = _tmpfs_options(given, flag=flag, text=text)
    keys.pop("consistency", None)  # a hint for macOS
    for key in keys:
        raise bad_value(flag, text, f"key {quote(key)} does not go with type={kind}")
    return Mount(type="bind" if kind == "bind" else "tmpfs", source=source, target=target, options=options)


def parse_tmpfs(text: str, *, flag: str = "--tmpfs") -> Mount:
    """``/path[:options]``; nosuid, nodev and noexec apply unless their opposites are given."""
    path, _, options = text.partition(":")
    given = options.split(",") if options else []
    return Mount(
        type="tmpfs",
        target=_target(path, flag=flag, text=text),
        options=_tmpfs_options(given, flag=flag, text=text),
    )


def check_targets(mounts: Iterable[Mount]) -> None:
    """Raise ``UsageError`` where two mounts have the same target."""
    seen: set[str] = set()
    for mount in mounts:
        if mount.target in seen:
            raise UsageError(f"duplicate mount point: {quote(mount.target)} is the target of more than one mount")
        seen.add(mount.target)


def _source(path: str, *, cwd: str, flag: str, text: str, bare: bool = False) -> str:
    """The absolute host path; a single word is a volume's name to docker, unless ``bare`` words are paths."""
    if not path or "\0" in path:
        raise bad_value(flag, text, "the source is not a path; expected a path of the host")
    if not bare and "/" not in path and not path.startswith("."):
        why = f"{quote(path)} would be a named volume, which is not supported; expected a path, such as ./data"
        raise bad_value(flag, text, why)
    return _normal(posixpath.join(cwd, path))


def _target(path: str, *, flag: str, text: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise bad_value(flag, text, "the container path is not absolute; expected one that starts with /")
    if (target := _normal(path)) == "/":
        raise bad_value(flag, text, "the container path is /, which cannot be mounted over")
    return target


def _normal(path: str) -> str:
    # POSIX lets exactly two leading slashes mean something else, and normpath keeps them; Linux gives them no meaning.
    return "/" + posixpath.normpath(path).lstrip("/")


def _choice(given: Sequence[str], group: tuple[str, ...], *, flag: str, text: str) -> str:
    found = sorted({word for word in given if word in group})
    if len(found) > 1:
        raise bad_value(flag, text, f"{found[0]} and {found[1]} contradict each other")
    return found[0] if found else group[0]


def _bind_options(given: Sequence[str], *, flag: str, text: str) -> tuple[str, ...]:
    known = {*_ACCESS, *_PROPAGATION, *_RECURSION, *_IGNORED, *(word for pair in _SWITCHES for word in pair)}
    for word in given:
        if word in _LATER:
            raise bad_value(flag, text, f"option {word}: {_LATER[word]} is not supported")
        if word not in known:
            why = f"unknown option {quote(word)}; expected ro, rw, z, Z, a propagation such as rslave, or rbind"
            raise bad_value(flag, text, why)
    _choice(given, ("z", "Z"), flag=flag, text=text)
    options = [_choice(given, group, flag=flag, text=text) for group in (_RECURSION, _PROPAGATION, _ACCESS)]
    for pair in _SWITCHES:
        if any(word in pair for word in given):
            options.append(_choice(given, pair, flag=flag, text=text))
    return tuple(options)


def _bind_key_options(keys: dict[str, str], *, flag: str, text: str) -> list[str]:
    """The options of a bind from the keys that only ``--mount`` has; they are taken out of ``keys``."""
    given = []
    if propagation := keys.pop("bind-propagation", ""):
        if propagation not in _PROPAGATION:
            why = f"bind-propagation {quote(propagation)}: expected one of {', '.join(_PROPAGATION)}"
            raise bad_value(flag, text, why)
        given.append(propagation)
    if parse_bool(keys.pop("bind-nonrecursive", "false"), flag=flag):
        given.append("bind")
    if recursive := keys.pop("bind-recursive", ""):
        if recursive not in ("enabled", "disabled"):
            raise bad_value(flag, text, f"bind-recursive {quote(recursive)}: expected enabled or disabled")
        given.append("rbind" if recursive == "enabled" else "bind")
    if relabel := keys.pop("relabel", ""):
        if relabel not in ("shared", "private"):
            raise bad_value(flag, text, f"relabel {quote(relabel)}: expected shared or private")
        given.append("z" if relabel == "shared" else "Z")
    return given


def _access(readonly: str, rw: str | None, *, flag: str, text: str) -> str:
    read_only = parse_bool(readonly, flag=f"readonly in {flag}")
    if rw is not None and parse_bool(rw, flag=f"rw in {flag}") == read_only:
        raise bad_value(flag, text, "ro and rw contradict each other")
    return "ro" if read_only else "rw"


def _tmpfs_options(given: Sequence[str], *, flag: str, text: str) -> tuple[str, ...]:
    """Checked options of a tmpfs, docker's defaults first; a later word overrides its opposite, as in mount(8)."""
    chosen: dict[str, str] = {default[2:]: default for default in _TMPFS_DEFAULTS}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals and word in _TMPFS_WORDS:
            chosen["ro" if word in _ACCESS else word.removeprefix("no")] = word
        elif key == "size":
            size = value if re.fullmatch(_PERCENT, value) else parse_size(value, flag=f"size in {flag}")
            chosen[key] = f"size={size}"
        elif equals and key in _TMPFS_VALUES:
            if not re.fullmatch(_TMPFS_VALUES[key], value):
                raise bad_value(flag, text, f"malformed {key} {quote(value)}")
            chosen[key] = word
        else:
            why = f"unknown option {quote(word)}; expected mount options of a tmpfs, such as size=64m"
            raise bad_value(flag, text, why)
    return tuple(chosen.values())


_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_FLAGS_OF_MOUNT = frozenset(("readonly", "rw", "bind-nonrecursive"))  # keys that may stand without a value


def _mount_keys(text: str, flag: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for field in _csv(text, flag):
        key, equals, value = field.partition("=")
        key = _ALIASES.get(key.strip().lower(), key.strip().lower())
        if not key:
            raise bad_value(flag, text, "a field is empty; expected key=value pairs with commas between them")
        if key in keys:
            raise bad_value(flag, text, f"{quote(key)} is given twice")
        if not equals:
            if key not in _FLAGS_OF_MOUNT:
                raise bad_value(flag, text, f"{quote(field)} has no value; expected key=value")
            value = "true"
        keys[key] = value
    return keys


def _csv(text: str, flag: str) -> list[str]:
    """The fields of one CSV record (RFC 4180): commas between them, double quotes around those that hold commas."""
    import csv  # rarely used, and not free

    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise bad_value(flag, text, f"malformed quoting: {error}") from None
    return rows[0] if rows and rows[0] else [""]
