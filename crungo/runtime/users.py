"""Who a container's process runs as: the user specification against the rootfs's passwd and group files. Pure.

Invariant: this module imports nothing but the error tree, because a small helper process imports it. The rules are
those of moby's user package: a number is always an id and need not be listed; a name must be; the supplementary
groups of the user's own entry count only where no group is given. Malformed lines are skipped, as glibc does.
"""

from __future__ import annotations

from crungo.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ResolvedUser", "resolve_user"]

_MAXIMUM_ID = (1 << 32) - 2  # the last one is (uid_t)-1, which means "no change"


class ResolvedUser:
    """Ids inside the container. ``additional_gids`` begins with ``gid``; ``home`` is an absolute path."""

    __slots__ = ("additional_gids", "gid", "home", "uid")

    def __init__(self, *, uid: int, gid: int, additional_gids: tuple[int, ...], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.additional_gids = additional_gids
        self.home = home

    def __repr__(self) -> str:
        return f"ResolvedUser(uid={self.uid}, gid={self.gid}, groups={self.additional_gids}, home={self.home!r})"


def resolve_user(spec: str | None, group_add: Iterable[str], passwd: bytes, group: bytes) -> ResolvedUser:
    """Resolve ``user[:group]`` (``None`` or empty: root) and further groups.

    ``passwd`` and ``group`` are the contents of the two files, empty where there is none.

    Raises:
        ContainerError: a name is unknown, or an id is out of range.
    """
    user, _, group_name = (spec or "").partition(":")
    uid = _number(user, "user") if user else 0
    name, gid, home = b"", 0, "/"
    for entry in _passwd(passwd):
        if (entry[1] == uid) if uid is not None else (entry[0] == _encode(user)):
            name, uid, gid, home = entry
            break
    if uid is None:
        raise ContainerError(f'user "{user}": no such user in the /etc/passwd of the container')
    extra: list[int] = []
    if group_name:
        gid = _group(group_name, group)
    elif name:
        extra = [entry[1] for entry in _groups(group) if name in entry[2]]
    extra += [_group(wanted, group) for wanted in group_add]
    # The primary group is among the supplementary ones, so that a program which drops it through setgid cannot pass
    # a check that denies the group something.
    return ResolvedUser(uid=uid, gid=gid, additional_gids=tuple(dict.fromkeys([gid, *extra])), home=home)


def _group(wanted: str, group: bytes) -> int:
    number = _number(wanted, "group")
    if number is not None:
        return number
    for entry in _groups(group):
        if entry[0] == _encode(wanted):
            return entry[1]
    raise ContainerError(f'group "{wanted}": no such group in the /etc/group of the container')


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _number(text: str, what: str) -> int | None:
    """The id, or ``None`` where the text is a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text) if len(text) <= 20 else _MAXIMUM_ID + 1
    if number > _MAXIMUM_ID:
        raise ContainerError(f"{what} {text[:40]}: out of range; ids go from 0 to {_MAXIMUM_ID}")
    return number


def _id(field: bytes) -> int | None:
    if not field.isdigit() or len(field) > 10 or int(field) > _MAXIMUM_ID:
        return None
    return int(field)


def _passwd(data: bytes) -> Iterator[tuple[bytes, int, int, str]]:
    """name, uid, gid, home of each well-formed line."""
    for line in data.split(b"\n"):
        fields = line.strip().split(b":")
        if len(fields) < 4 or not fields[0] or b"\0" in line:
            continue
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is None or gid is None:
            continue
        yield fields[0], uid, gid, _home(fields[5] if len(fields) > 5 else b"")


def _home(field: bytes) -> str:
    try:
        home = field.decode("utf-8")
    except UnicodeDecodeError:
        return "/"
    return home if home.startswith("/") else "/"


def _groups(data: bytes) -> Iterator[tuple[bytes, int, list[bytes]]]:
    """name, gid, members of each well-formed line."""
    for line in data.split(b"\n"):
        fields = line.strip().split(b":")
        if len(fields) < 3 or not fields[0] or b"\0" in line:
            continue
        gid = _id(fields[2])
        if gid is not None:
            yield fields[0], gid, fields[3].split(b",") if len(fields) > 3 else []
