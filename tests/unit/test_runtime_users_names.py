"""Users of the rootfs by moby's rules; random ids and names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import ContainerError, UsageError
from crungo.runtime.names import check_name, random_id, random_name
from tests.support.native import find_home, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment

broken:x:abc:1::/broken:
short
app:x:1000:1000:App:/home/app:/bin/sh
app:x:2000:2000:second:/other:/bin/sh
nohome:x:1001:1001
odd:x:1002:1002::relative:
42:x:5000:5000:named by a number:/n:
huge:x:4294967295:1::/:
latin:x:1003:1003::/home/\xff:
"""
GROUP = b"""root:x:0:
staff:x:50:app,other
wheel:x:10:root,app
app:x:1000:
bad:x:zz:app
docker:x:999
7:x:5007:app
"""


def resolve(
    spec: str | None, *groups: str, passwd: bytes = PASSWD, group: bytes = GROUP
) -> tuple[int, int, tuple[int, ...]]:
    return resolve_user(spec, groups, passwd, group)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, (0, 0, (0, 10))),
        ("", (0, 0, (0, 10))),
        ("root", (0, 0, (0, 10))),
        ("0", (0, 0, (0, 10))),
        ("app", (1000, 1000, (1000, 50, 10, 5007))),
        ("1000", (1000, 1000, (1000, 50, 10, 5007))),
        ("app:staff", (1000, 50, (50,))),
        ("app:7", (1000, 7, (7,))),
        ("12345", (12345, 0, (0,))),
        ("12345:6789", (12345, 6789, (6789,))),
        ("42", (42, 0, (0,))),
        ("nohome", (1001, 1001, (1001,))),
        ("odd", (1002, 1002, (1002,))),
        ("latin", (1003, 1003, (1003,))),
        ("4294967294", (4294967294, 0, (0,))),
        (":staff", (0, 50, (50,))),
        ("app:docker", (1000, 999, (999,))),
    ],
)
def test_users(spec: str | None, expected: tuple[int, int, tuple[int, ...]]) -> None:
    assert resolve(spec) == expected


def test_further_groups() -> None:
    assert resolve("12345", "staff", "77", "staff")[2] == (0, 50, 77)
    assert resolve("app", "docker")[2] == (1000, 50, 10, 5007, 999)


@pytest.mark.parametrize(
    "spec",
    [
        "nobody",
        "broken",
        "short",
        "huge",
        "app:nogroup",
        "app:bad",
        "4294967295",
        "0:4294967295",
        "99999999999999999999",
        "9" * 5000,
        "-1",
        "\u0661",
    ],
)
def test_unknown_names_and_ids_out_of_range(spec: str) -> None:
    with pytest.raises(ContainerError):
        resolve(spec)
    with pytest.raises(ContainerError, match="group"):
        resolve("0", "nogroup")


def test_no_files_at_all() -> None:
    assert resolve(None, passwd=b"", group=b"") == (0, 0, (0,))
    with pytest.raises(ContainerError, match='user "app": no such user'):
        resolve("app", passwd=b"", group=b"")


def test_more_groups_than_can_be_set() -> None:
    lines = b"".join(b"g%d:x:%d:app\n" % (gid, gid) for gid in range(70_000))
    with pytest.raises(ContainerError, match="in more than 65536 groups"):
        resolve("app", group=lines)


@pytest.mark.parametrize(
    ("uid", "home"),
    [(0, b"/root"), (1000, b"/home/app"), (1001, None), (1002, b"relative"), (1003, b"/home/\xff"), (1004, None)],
)
def test_homes(uid: int, home: bytes | None) -> None:
    assert find_home(uid, PASSWD) == home


# Mostly of what the files are made of, so that lines come out right more often than not.
PIECES = st.lists(
    st.sampled_from(["a", "b", "0", "1", "7", "4294967294", "4294967295", ":", "::", ",", "\n", " ", "\r", "\0", "x:"]),
    max_size=30,
).map(lambda pieces: "".join(pieces).encode())
FILES = st.one_of(st.binary(max_size=60), PIECES, PIECES.map(lambda tail: b"a:x:1:1:,a,b:\nb:x:7:" + tail))
WORDS = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12),
    st.sampled_from(["a", "b", "a:b", "b:a", "1", "7:a", ":1", "a:", "1:4294967295", "x"]),
)


@given(WORDS, st.lists(WORDS, max_size=2), FILES, FILES)
def test_it_does_what_a_model_does(spec: str, groups: list[str], passwd: bytes, group: bytes) -> None:
    expected = model(spec, groups, passwd, group)
    if expected is None:
        with pytest.raises(ContainerError):
            resolve_user(spec, groups, passwd, group)
    else:
        assert resolve_user(spec, groups, passwd, group) == expected


@given(st.sampled_from([0, 1, 7, 4294967294, 4294967295]), FILES)
def test_a_home_is_what_a_model_finds(uid: int, passwd: bytes) -> None:
    users = [f for f in fields_of(passwd) if len(f) > 3 and is_id(f[2]) and is_id(f[3])]
    homes = [(*f[5:6], b"")[0] or None for f in users if int(f[2]) == uid]
    assert find_home(uid, passwd) == next(iter(homes), None)


def model(spec: str, group_add: list[str], passwd: bytes, group: bytes) -> tuple[int, int, tuple[int, ...]] | None:
    """The rules once more; None where the user or a group is unknown or out of range."""
    user, _, group_name = spec.partition(":")
    users = [(f[0], int(f[2]), int(f[3])) for f in fields_of(passwd) if len(f) > 3 and is_id(f[2]) and is_id(f[3])]
    groups = [(f[0], int(f[2]), [*f[3:4], b""][0].split(b",")) for f in fields_of(group) if len(f) > 2 and is_id(f[2])]
    digits = user.isascii() and user.isdigit()
    wanted = next((u for u in users if (u[1] == int(user or 0) if digits or not user else u[0] == user.encode())), None)
    if wanted is None and not (digits or not user):
        return None
    uid = int(user or 0) if wanted is None else wanted[1]
    gids = [0 if wanted is None else wanted[2]]
    for name in [*([group_name] if group_name else []), *group_add]:
        if name.isascii() and name.isdigit():
            found = [int(name)]
        else:
            found = [entry[1] for entry in groups if entry[0] == name.encode()]
        if not found:
            return None
        gids.append(found[0])
    if group_name:
        del gids[0]
    elif wanted is not None:
        gids[1:1] = [entry[1] for entry in groups if wanted[0] in entry[2]]
    if max(uid, *gids, 0) > (1 << 32) - 2:
        return None
    return uid, gids[0], tuple(dict.fromkeys(gids))


def fields_of(content: bytes) -> list[list[bytes]]:
    lines = [line.strip().split(b":") for line in content.split(b"\n") if b"\0" not in line]
    return [fields for fields in lines if fields[0]]


def is_id(field: bytes) -> bool:
    return field.isdigit() and len(field) <= 10 and int(field) <= (1 << 32) - 2


def test_ids() -> None:
    for _ in range(200):
        identifier = random_id()
        assert len(identifier) == 64
        assert set(identifier) <= set("0123456789abcdef")
        assert not identifier[:12].isdigit()


def test_names() -> None:
    names = {random_name() for _ in range(200)}
    assert len(names) > 150
    for name in names:
        assert check_name(name) == name
        assert name.count("_") == 1
    for text in ("", "a", "-a", "_ab", ".ab", "a b", "a/b", "é" * 3, "a" * 251, "ab\n"):
        with pytest.raises(UsageError, match="--name"):
            check_name(text)
