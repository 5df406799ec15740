"""Volumes, mounts and tmpfs: docker's grammar, its refusals, and the invariants of what comes out."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.config import Mount
from crungo.errors import UsageError
from crungo.parsing.mounts import check_targets, parse_mount, parse_tmpfs, parse_volume

if TYPE_CHECKING:
    from collections.abc import Callable


def volume(text: str) -> Mount:
    return parse_volume(text, cwd="/srv/here")


def mount(text: str) -> Mount:
    return parse_mount(text, cwd="/srv/here")


def test_volume_defaults() -> None:
    expected = Mount(type="bind", source="/a", target="/b", options=("rbind", "rprivate", "rw"))
    assert volume("/a:/b") == volume("/a/:/b/") == volume("//a:/x/../b") == expected


@pytest.mark.parametrize(
    ("source", "absolute"),
    [
        ("./d", "/srv/here/d"),
        ("d/e", "/srv/here/d/e"),
        (".", "/srv/here"),
        ("..", "/srv"),
        ("~/d", "/srv/here/~/d"),
    ],
)
def test_relative_sources_start_from_the_working_directory(source: str, absolute: str) -> None:
    assert volume(f"{source}:/b").source == absolute


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("ro", ("rbind", "rprivate", "ro")),
        ("ro,z", ("rbind", "rprivate", "ro")),
        ("Z", ("rbind", "rprivate", "rw")),
        ("rslave", ("rbind", "rslave", "rw")),
        ("bind,private", ("bind", "private", "rw")),
        ("ro,nosuid,noexec", ("rbind", "rprivate", "ro", "nosuid", "noexec")),
        ("cached", ("rbind", "rprivate", "rw")),
    ],
)
def test_volume_options(options: str, expected: tuple[str, ...]) -> None:
    assert volume(f"/a:/b:{options}").options == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no container path"),
        ("/a", "no container path"),
        ("/a:b", "not absolute"),
        ("/a:/", "cannot be mounted over"),
        ("/a:/b/..", "cannot be mounted over"),
        (":/b", "is empty"),
        ("/a:", "is empty"),
        ("/a:/b:", "is empty"),
        ("/a:/b:ro:rw", "too many colons"),
        ("/a:/b:rx", "unknown option"),
        ("/a:/b:ro,rw", "contradict"),
        ("/a:/b:shared,rslave", "contradict"),
        ("/a:/b:z,Z", "contradict"),
        ("data:/b", "named volume"),
        ("/a:/b:O", "not supported"),
        ("/a:/b:ro,", "unknown option"),
        ("/a\0:/b", "not a path"),
    ],
)
def test_malformed_volumes(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--volume.*{why}"):
        volume(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "type=bind,source=/a,target=/b",
            Mount(type="bind", source="/a", target="/b", options=("rbind", "rprivate", "rw")),
        ),
        (
            "type=bind,src=data,dst=/b,ro",
            Mount(type="bind", source="/srv/here/data", target="/b", options=("rbind", "rprivate", "ro")),
        ),
        (
            'type=bind,"src=/a,b",destination=/b,readonly=true',
            Mount(type="bind", source="/a,b", target="/b", options=("rbind", "rprivate", "ro")),
        ),
        (
            "type=bind,src=/a,dst=/b,bind-propagation=rslave,bind-recursive=disabled,relabel=shared,consistency=cached",
            Mount(type="bind", source="/a", target="/b", options=("bind", "rslave", "rw")),
        ),
        (
            "target=/t,type=tmpfs,tmpfs-size=64m,tmpfs-mode=1770",
            Mount(type="tmpfs", target="/t", options=("noexec", "nosuid", "nodev", "rw", "size=67108864", "mode=1770")),
        ),
    ],
)
def test_mounts(text: str, expected: Mount) -> None:
    assert mount(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("type=bind", "no target"),
        ("type=bind,target=/b", "no source"),
        ("source=a,target=/b", "named volumes"),
        ("type=image,source=a,target=/b", "not supported"),
        ("type=tmpfs,source=/a,target=/b", "no source"),
        ("type=tmpfs,target=/b,bind-propagation=shared", "does not go with"),
        ("type=bind,src=/a,dst=/b,tmpfs-size=1m", "does not go"),
        ("type=bind,src=/a,dst=/b,dst=/c", "twice"),
        ("type=bind,src=/a,dst=/b,wat", "no value"),
        ("type=bind,src=/a,dst=/b,x=y", "does not go"),
        ("type=bind,src=/a,dst=/b,ro=maybe", "not a boolean"),
        ("type=bind,src=/a,dst=/b,ro,rw", "contradict"),
        ('type=bind,"src=/a', "quoting"),
        ("type=tmpfs,dst=/b,tmpfs-mode=9", "malformed mode"),
        ("type=tmpfs,dst=/b,tmpfs-size=x", "not a size"),
        ("type=bind,src=/a,dst=/b,bind-propagation=odd", "expected one of"),
        ("type=bind,src=/a,dst=/b,bind-nonrecursive,bind-recursive=enabled", "contradict"),
    ],
)
def test_malformed_mounts(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--mount.*{why}"):
        mount(text)


def test_tmpfs() -> None:
    assert parse_tmpfs("/run").options == ("noexec", "nosuid", "nodev")
    assert parse_tmpfs("/run:exec,size=50%,mode=755,ro").options == (
        "exec",
        "nosuid",
        "nodev",
        "size=50%",
        "mode=755",
        "ro",
    )
    assert parse_tmpfs("/run:size=1g,uid=1000").options[-2:] == ("size=1073741824", "uid=1000")
    for text in ("", "run", "/", "/run:size=", "/run:bogus", "/run:mode=abc", "/run:size"):
        with pytest.raises(UsageError, match="--tmpfs"):
            parse_tmpfs(text)


def test_targets_are_unique() -> None:
    check_targets([volume("/a:/b"), parse_tmpfs("/c")])
    with pytest.raises(UsageError, match='duplicate mount point: "/b"'):
        check_targets([volume("/a:/b"), parse_tmpfs("/b/")])


PIECES = st.lists(
    st.sampled_from(
        [
            "/",
            ":",
            ",",
            "=",
            "..",
            ".",
            "a",
            "type",
            "bind",
            "tmpfs",
            "source",
            "target",
            "ro",
            "rw",
            '"',
            "size",
            "1m",
            "\0",
        ]
    )
    | st.text(max_size=3)
).map("".join)


@given(st.sampled_from([volume, mount, parse_tmpfs]), PIECES)
def test_only_usage_errors_and_sound_mounts(parse: Callable[[str], Mount], text: str) -> None:
    try:
        result = parse(text)
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert result.target.startswith("/")
    assert result.target == posixpath.normpath(result.target) != "/"
    assert len(set(result.options)) == len(result.options)
    if result.type == "bind":
        assert result.source == posixpath.normpath(result.source)
        assert result.source.startswith("/")


PATHS = st.from_regex(r"(/[a-z0-9_.~ é-]{1,8}){1,3}", fullmatch=True).filter(lambda p: posixpath.normpath(p) == p)


@given(PATHS, PATHS, st.booleans())
def test_round_trip(source: str, target: str, read_only: bool) -> None:
    expected = Mount(
        type="bind", source=source, target=target, options=("rbind", "rprivate", "ro" if read_only else "rw")
    )
    assert volume(f"{source}:{target}{':ro' if read_only else ''}") == expected
    assert mount(f"type=bind,src={source},dst={target},readonly={str(read_only).lower()}") == expected
