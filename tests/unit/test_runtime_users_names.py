"""Users of the rootfs by moby's rules; random ids and names."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import ContainerError, UsageError
from crungo.runtime.names import check_name, random_id, random_name
from crungo.runtime.users import ResolvedUser, resolve_user

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
) -> tuple[int, int, tuple[int, ...], str]:
    user = resolve_user(spec, groups, passwd, group)
    assert isinstance(user, ResolvedUser)
    return user.uid, user.gid, user.additional_gids, user.home


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, (0, 0, (0, 10), "/root")),
        ("", (0, 0, (0, 10), "/root")),
        ("root", (0, 0, (0, 10), "/root")),
        ("0", (0, 0, (0, 10), "/root")),
        ("app", (1000, 1000, (1000, 50, 10, 5007), "/home/app")),
        ("1000", (1000, 1000, (1000, 50, 10, 5007), "/home/app")),
        ("app:staff", (1000, 50, (50,), "/home/app")),
        ("app:7", (1000, 7, (7,), "/home/app")),
        ("12345", (12345, 0, (0,), "/")),
        ("12345:6789", (12345, 6789, (6789,), "/")),
        ("42", (42, 0, (0,), "/")),
        ("nohome", (1001, 1001, (1001,), "/")),
        ("odd", (1002, 1002, (1002,), "/")),
        ("latin", (1003, 1003, (1003,), "/")),
        ("4294967294", (4294967294, 0, (0,), "/")),
        (":staff", (0, 50, (50,), "/root")),
        ("app:docker", (1000, 999, (999,), "/home/app")),
    ],
)
def test_users(spec: str | None, expected: tuple[int, int, tuple[int, ...], str]) -> None:
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
    assert resolve(None, passwd=b"", group=b"") == (0, 0, (0,), "/")
    with pytest.raises(ContainerError, match='user "app": no such user'):
        resolve("app", passwd=b"", group=b"")


@given(st.text(max_size=12), st.lists(st.text(max_size=5), max_size=2), st.binary(max_size=60), st.binary(max_size=60))
def test_hostile_files(spec: str, groups: list[str], passwd: bytes, group: bytes) -> None:
    try:
        user = resolve_user(spec, groups, b"a:x:1:1:" + passwd, b"a:x:1:" + group)
    except ContainerError:
        return
    for number in (user.uid, user.gid, *user.additional_gids):
        assert 0 <= number <= (1 << 32) - 2
    assert user.home.startswith("/")
    assert user.gid in user.additional_gids


def test_the_module_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import crungo.runtime.users; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        "__future__",
        "crungo",
        "crungo.errors",
        "crungo.runtime",
        "crungo.runtime.users",
    }


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
