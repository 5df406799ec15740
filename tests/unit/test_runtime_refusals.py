"""What libcrun's refusals say in the user's terms; its messages are quoted as it writes them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.config import ContainerConfig, Device, Mount
from crungo.errors import LibcrunError
from crungo.runtime.refusals import explain, wrong_directory

ROOT = "/store/containers/0123/rootfs"


def bind(source: Path | str, target: str) -> Mount:
    return Mount(type="bind", source=str(source), target=target, options=("rw",))


def told(config: ContainerConfig, number: int, reason: str) -> str | None:
    error = explain(LibcrunError("create", number, reason), config, identifier="0123")
    return None if error is None else error.message


@pytest.mark.parametrize(
    ("source", "target", "number", "reason", "expected"),
    [
        ("", "/etc/passwd", errno.ENOTDIR, "mount `{source}` to `etc/passwd`: Not a directory",
         "a directory cannot be mounted on a file; both must be of the same kind"),
        ("file", "/etc", errno.ENOTDIR, "mount `{source}` to `etc`: Not a directory",
         "a file cannot be mounted on a directory; both must be of the same kind"),
        ("", "/bin/sh/x/y", errno.ENOTDIR,
         "error creating directory `bin/sh/x/y` since `bin/sh` exists and it is not a directory: Not a directory",
         '"/bin/sh" is not a directory'),
        ("", "/etc/passwd/x", errno.ENOTDIR, "mkdir `/etc/passwd/x`: Not a directory",
         "a part of the path is not a directory"),
        ("", "/proc/x", errno.ENOENT, "mkdir `/proc/x`: No such file or directory",
         "nothing is there, and nothing can be made below /proc"),
        ("file", "/sys/a/b", errno.ENOENT, f"open `{ROOT}/sys/a/b`: No such file or directory",
         "nothing is there, and nothing can be made below /sys"),
        ("", "/dev", errno.ENOENT, "failed open()ing `/dev/null`: No such file or directory",
         "the container needs /dev/null, which is not there"),
        ("", "/a/b", errno.EROFS, "mkdir `/a/b`: Read-only file system", "Read-only file system"),
    ],
)  # fmt: skip
def test_mounts(tmp_path: Path, source: str, target: str, number: int, reason: str, expected: str) -> None:  # noqa: PLR0917
    path = tmp_path / source
    if source:
        path.touch()
    # Another one is not taken for it: one whose target is this one's source, and one that lies as deep.
    config = ContainerConfig(image="x", mounts=(bind("/", str(path)), bind("/", "/other"), bind(path, target)))
    assert told(config, number, reason.format(source=path)) == f'mount "{path}" on "{target}": {expected}'


def test_other_requests() -> None:
    device = Device(source="/dev/null", target="/proc/x", permissions="rwm")
    config = ContainerConfig(image="x", devices=(device,), sysctls={"net.a.b": "1"})
    missing = errno.ENOENT
    assert told(config, missing, "mknod `/proc/x`: No such file or directory") == (
        'device "/dev/null" on "/proc/x": No such file or directory'
    )
    assert told(config, missing, "open `/proc/sys/net/a/b`: No such file or directory") == (
        "--sysctl net.a.b=1: the kernel has none of this name"
    )
    assert told(config, errno.EINVAL, "write to `/proc/sys/net/a/b`: Invalid argument") == (
        "--sysctl net.a.b=1: Invalid argument"
    )
    assert told(config, missing, "chdir to `/work`: No such file or directory") == (
        'working directory "/work": No such file or directory'
    )


def test_too_few_open_files() -> None:
    config = ContainerConfig(image="x", mounts=(bind("/", "/sys/x"),))
    assert "open files" in (told(config, errno.EMFILE, "openat2 `sys/x`: Too many open files") or "")


@given(st.text(), st.integers(0, 200).filter(lambda number: number != errno.EMFILE))
def test_what_is_about_nothing_that_was_asked_for_stays(reason: str, number: int) -> None:
    config = ContainerConfig(image="x", mounts=(bind("/", "/mounted/here"),))
    if "mounted" not in reason and "chdir" not in reason:
        assert told(config, number, reason) is None
        assert wrong_directory(reason, number) is None
    assert told(config, 0, "mount `/` to `mounted/here`") is None
