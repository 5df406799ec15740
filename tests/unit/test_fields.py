"""Keywords of calls: every natural form is taken, every other is refused in one line, and None is the default."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crungo
from crungo.cli.run_flags import FLAGS
from crungo.config import ContainerConfig, Device, ExecConfig, Mount, Ulimit
from crungo.errors import UsageError
from crungo.fields import ContainerFields, ExecFields, check_input, configure, configure_exec, duration, limits_of
from crungo.records import fields

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"memory": "256m"}, {"memory": 256 << 20}),
    ({"memory": 256 << 20}, {"memory": 256 << 20}),
    ({"memory": 0}, {"memory": None}),
    ({"memory_swap": -1}, {"memory_swap": -1}),
    ({"shm_size": "1.5m"}, {"shm_size": 3 << 19}),
    ({"cpus": 0.5}, {"cpus": 0.5}),
    ({"cpus": 2}, {"cpus": 2.0}),
    ({"cpus": ".5"}, {"cpus": 0.5}),
    ({"pids_limit": -1}, {"pids_limit": None}),
    ({"pids_limit": None}, {"pids_limit": None}),
    ({"stop_timeout": "1m30s"}, {"stop_timeout": 90.0}),
    ({"stop_timeout": 0.25}, {"stop_timeout": 0.25}),
    ({"stop_signal": "SIGINT"}, {"stop_signal": 2}),
    ({"stop_signal": 2}, {"stop_signal": 2}),
    ({"env": {"A": "1", "B": None}}, {"env": {"A": "1", "B": None}}),
    ({"env": ["A=1", "B=x=y", "TEST_FIELD", "TEST_MISSING"]},
     {"env": {"A": "1", "B": "x=y", "TEST_FIELD": "here", "TEST_MISSING": None}}),
    ({"labels": ["a=1", "b"]}, {"labels": {"a": "1", "b": ""}}),
    ({"sysctls": ["net/core/somaxconn=5"]}, {"sysctls": {"net.core.somaxconn": "5"}}),
    ({"user": 1000}, {"user": "1000"}),
    ({"user": "app:staff"}, {"user": "app:staff"}),
    ({"group_add": [50, "video"]}, {"group_add": ("50", "video")}),
    ({"entrypoint": "/bin/sh"}, {"entrypoint": ("/bin/sh",)}),
    ({"entrypoint": ""}, {"entrypoint": ()}),
    ({"entrypoint": ["/bin/sh", "-c"]}, {"entrypoint": ("/bin/sh", "-c")}),
    ({"workdir": Path("/srv")}, {"workdir": "/srv"}),
    ({"volumes": ["/a:/b:ro"]},
     {"mounts": (Mount(type="bind", source="/a", target="/b", options=("rbind", "rprivate", "ro")),)}),
    ({"mounts": [Mount(type="tmpfs", target="/t")], "tmpfs": None}, {"mounts": (Mount(type="tmpfs", target="/t"),)}),
    ({"devices": ["/dev/fuse", Device(source="/dev/null", target="/n")]},
     {"devices": (Device(source="/dev/fuse", target="/dev/fuse"), Device(source="/dev/null", target="/n"))}),
    ({"ulimits": ["nofile=5:6", Ulimit(name="core", soft=0, hard=0)]},
     {"ulimits": (Ulimit(name="nofile", soft=5, hard=6), Ulimit(name="core", soft=0, hard=0))}),
    ({"add_host": ["a:1.2.3.4", ("b", "host-gateway")]}, {"add_host": (("a", "1.2.3.4"), ("b", "host-gateway"))}),
    ({"cap_add": ["net_admin,CAP_CHOWN"]}, {"cap_add": ("NET_ADMIN", "CHOWN")}),
    ({"size": (80, 24), "tty": True}, {"size": (80, 24), "tty": True}),
    ({"platform": "Linux/ARM64", "pull": "never"}, {"platform": "linux/arm64", "pull": "never"}),
    ({"env": None, "volumes": None, "tty": None, "memory": None}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "expected"), CASES, ids=str)
def test_natural_values(given_: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_FIELD", "here")
    assert configure("image", ["x"], given_) == ContainerConfig(image="image", command=("x",), **expected)


def test_relative_paths_start_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = crungo.configure("image", volumes=["./data:/data"], rootfs="root")
    assert config.mounts[0].source == f"{tmp_path}/data"
    assert config.rootfs == f"{tmp_path}/root"


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": "lots"}, {"memory": True}, {"memory": 1.5}, {"memory": "1m"}, {"memory": [1]},
        {"cpus": float("nan")}, {"cpus": float("inf")}, {"cpus": -1}, {"env": "A=1"}, {"env": {"A": 1}}, {"env": [1]},
        {"env": {1: "a"}}, {"volumes": "/a:/b"}, {"volumes": ["/a"]}, {"mounts": [1]}, {"tty": 1}, {"size": (0, 0)},
        {"size": "80x24"}, {"user": b"root"}, {"workdir": "relative"}, {"stop_signal": "SIGNOTHING"}, {"pull": "maybe"},
        {"stop_timeout": "soon"}, {"network": "bridge"}, {"devices": ["null"]}, {"unknown": 1}, {"image": "x"},
        {"command": ["x"]}, {"labels": {"a": None}}, {"entrypoint": 1}, {"cap_add": ["FLY"]}, {"name": 5},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values_are_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        configure("image", None, wrong)
    assert "\n" not in str(caught.value)
    assert next(iter(wrong)).rstrip("s") in str(caught.value)


@pytest.mark.parametrize(("word", "meant"), [("memroy", "memory"), ("volume", "volumes"), ("read_onyl", "read_only"),
    ("interactive", "stdin"), ("environment", "env"), ("net", "network"), ("cwd", "workdir")])  # fmt: skip
def test_an_unknown_keyword_is_told_what_was_meant(word: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown keyword '{word}': did you mean '{meant}'\\?$"):
        configure("image", None, {word: "1"})


def test_an_unknown_keyword_that_is_like_no_other() -> None:
    with pytest.raises(UsageError, match=r"^unknown keyword 'xyzzy'$"):
        configure("image", None, {"xyzzy": "1"})
    with pytest.raises(UsageError, match=r"^unknown keyword 'usr': did you mean 'user'"):
        configure_exec(["x"], {"usr": "1"})
    with pytest.raises(UsageError, match=r"^unknown keyword 'mem_limit'$"):
        configure_exec(["x"], {"mem_limit": "1"})


@pytest.mark.parametrize("good", [None, b"", b"x", bytearray(b"x"), memoryview(b"x")])
def test_input_is_bytes(good: Any) -> None:
    check_input(good)


def test_a_program_with_a_terminal_has_no_input() -> None:
    check_input(None, tty=True)
    with pytest.raises(UsageError, match=r"^input: a program with a terminal has none; .* `terminal`$"):
        check_input(b"x", tty=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", r"not a text; its encode\(\) makes them"),
        (5, "not 5"),
        (["x"], r"not \['x'\]"),
        (Path("/x"), "PosixPath"),
    ],
)
def test_any_other_input_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^input: bytes are expected, .*{message}"):
        check_input(wrong)


@pytest.mark.parametrize("command", ["echo hello", b"x", 5, [1], ["a", b"b"]])
def test_a_command_is_a_list_of_texts(command: Any) -> None:
    with pytest.raises(UsageError, match="command"):
        configure("image", command)


def test_a_whole_configuration_is_changed_by_keywords() -> None:
    base = crungo.configure("image", ["x"], memory="64m", read_only=True, volumes=["/a:/a"])
    changed = crungo.configure(base, ["y"], memory=None, read_only=False, tmpfs=["/t"])
    assert (changed.image, changed.command, changed.memory, changed.read_only) == ("image", ("y",), None, False)
    assert [mount.target for mount in changed.mounts] == ["/a", "/t"]
    assert crungo.configure(base) == base


def test_the_typed_keywords_are_the_fields() -> None:
    extra = {"volumes", "tmpfs"}
    own = {"image", "command"}
    assert set(ContainerFields.__annotations__) - extra == fields(ContainerConfig).keys() - own
    assert set(ExecFields.__annotations__) == fields(ExecConfig).keys() - own


def test_the_reference_has_each_keyword_with_its_flag() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:`(--[a-z-]+)` )?\|", text, re.MULTILINE)
    assert [keyword for keyword, _ in rows] == list(ContainerFields.__annotations__)
    assert {flag for _, flag in rows} - {""} <= {flag.name for flag in FLAGS}
    for keyword, flag in rows:
        alike = flag.removeprefix("--").replace("-", "_")
        assert alike in (keyword, keyword.removesuffix("s"), "interactive", "security_opt", ""), keyword


def test_exec_takes_the_same_forms() -> None:
    config = configure_exec(["id"], {"user": 5, "env": ["A=1"], "workdir": "/tmp"})
    assert config == ExecConfig(command=("id",), user="5", env={"A": "1"}, workdir="/tmp")
    with pytest.raises(UsageError):
        configure_exec(["id"], {"memory": "1g"})


def test_limits() -> None:
    assert limits_of(memory="8m", cpus=0.5, pids_limit=-1, memory_swap=None) == {
        "memory": 8 << 20, "cpus": 0.5, "pids_limit": -1,
    }  # fmt: skip
    assert limits_of(memory=0, cpus=0) == {"memory": -1, "cpus": -1}
    with pytest.raises(UsageError):
        limits_of(cpus="fast")


def test_durations() -> None:
    assert (duration(1, "t"), duration(0.1, "t"), duration("100ms", "t")) == (1.0, 0.1, 0.1)


simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5)


@given(
    name=st.sampled_from(sorted(ContainerFields.__annotations__)),
    value=simple | st.lists(simple, max_size=3) | st.dictionaries(st.text(max_size=5), simple, max_size=3),
)
def test_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        config = configure("image", None, {name: value})
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most values are fine
    else:
        assert hash(config.mounts) is not None
        assert os.fsdecode(config.image) == "image"
