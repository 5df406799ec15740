"""``crungo run``: every flag reaches the configuration, and bad ones are refused with one line."""

from __future__ import annotations

from typing import Any

import pytest

from crungo.cli.flags import parse
from crungo.cli.run_options import VERB, RunOptions, Surroundings, to_options
from crungo.config import ContainerConfig, Device, Mount, Ulimit
from crungo.errors import UsageError

FILES = {
    "/srv/env": b"A=file\nB=file\nHOME\n",
    "/etc/p.json": b'{"defaultAction": "SCMP_ACT_ALLOW"}',
    "/srv/l": b"a=1\n",
    "/bad": b"\xff",
}


def read(path: str) -> bytes:
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory", path)
    return FILES[path]


AROUND = Surroundings(environ={"HOME": "/root"}, cwd="/srv", read=read)


def options(*words: str) -> RunOptions:
    return to_options(parse(VERB.flags, words, interspersed=VERB.interspersed), AROUND)


def config(*words: str) -> ContainerConfig:
    return options(*words, "image").config


def test_nothing_but_an_image() -> None:
    assert options("alpine") == RunOptions(config=ContainerConfig(image="alpine"))


def test_the_command_keeps_its_dashes() -> None:
    assert options("-it", "alpine", "sh", "-c", "--", "-it").config.command == ("sh", "-c", "--", "-it")


BIND = ("rbind", "rprivate")


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        (["-i"], "stdin", True),
        (["--interactive"], "stdin", True),
        (["-t"], "tty", True),
        (["--tty"], "tty", True),
        (["-e", "A=1", "--env", "HOME", "-e", "NONE"], "env", {"A": "1", "HOME": "/root", "NONE": None}),
        (["--env-file", "env", "-e", "B=2"], "env", {"A": "file", "B": "2", "HOME": "/root"}),
        (
            ["-v", "./d:/d:ro", "--volume", "/h:/e"],
            "mounts",
            (
                Mount(type="bind", source="/srv/d", target="/d", options=(*BIND, "ro")),
                Mount(type="bind", source="/h", target="/e", options=(*BIND, "rw")),
            ),
        ),
        (
            ["--mount", "type=bind,src=/h,dst=/d"],
            "mounts",
            (Mount(type="bind", source="/h", target="/d", options=(*BIND, "rw")),),
        ),
        (["--tmpfs", "/t"], "mounts", (Mount(type="tmpfs", target="/t", options=("noexec", "nosuid", "nodev")),)),
        (["-u", "app:staff"], "user", "app:staff"),
        (["--user", "1000"], "user", "1000"),
        (["--group-add", "a", "--group-add", "7"], "group_add", ("a", "7")),
        (["--cpus", "1.5"], "cpus", 1.5),
        (["-m", "256m"], "memory", 256 << 20),
        (["--memory", "1g"], "memory", 1 << 30),
        (["--memory-swap", "-1"], "memory_swap", -1),
        (["--pids-limit", "-1"], "pids_limit", None),
        (["--pids-limit", "9"], "pids_limit", 9),
        (["--ulimit", "nofile=1:2"], "ulimits", (Ulimit(name="nofile", soft=1, hard=2),)),
        (["--shm-size", "1m"], "shm_size", 1 << 20),
        (["--name", "box"], "name", "box"),
        (["-w", "/a/../b"], "workdir", "/b"),
        (["--workdir", "/b"], "workdir", "/b"),
        (["--entrypoint", "/bin/sh"], "entrypoint", ("/bin/sh",)),
        (["--entrypoint", ""], "entrypoint", ()),
        (["--net", "host"], "network", "host"),
        (["--network=none"], "network", "none"),
        (["--hostname", "h"], "hostname", "h"),
        (["-h", "h"], "hostname", "h"),
        (["--add-host", "a:1.2.3.4"], "add_host", (("a", "1.2.3.4"),)),
        (["--dns", "1.1.1.1"], "dns", ("1.1.1.1",)),
        (["--read-only"], "read_only", True),
        (["--cap-add", "net_admin,CAP_BPF"], "cap_add", ("NET_ADMIN", "BPF")),
        (["--cap-drop", "all"], "cap_drop", ("ALL",)),
        (["--privileged"], "privileged", True),
        (["--init"], "init", True),
        (["-l", "a=b", "--label", "c"], "labels", {"a": "b", "c": ""}),
        (["--label-file", "l", "-l", "a=2"], "labels", {"a": "2"}),
        (["--sysctl", "net/core/somaxconn=1"], "sysctls", {"net.core.somaxconn": "1"}),
        (["--device", "/dev/fuse:r"], "devices", (Device(source="/dev/fuse", target="/dev/fuse", permissions="r"),)),
        (["--stop-signal", "INT"], "stop_signal", 2),
        (["--stop-timeout", "1m"], "stop_timeout", 60.0),
        (["--pull", "always"], "pull", "always"),
        (["--platform", "linux/arm64"], "platform", "linux/arm64"),
        (["--security-opt", "no-new-privileges"], "no_new_privileges", True),
        (["--security-opt", "systempaths=unconfined"], "unmask", True),
        (["--security-opt", "seccomp=unconfined"], "seccomp", "unconfined"),
        (["--security-opt", "seccomp=builtin"], "seccomp", None),
        (["--security-opt", "seccomp=/etc/p.json"], "seccomp", '{"defaultAction": "SCMP_ACT_ALLOW"}'),
    ],
)
def test_flags_of_the_container(words: list[str], field: str, expected: Any) -> None:
    assert getattr(config(*words), field) == expected


def test_flags_of_the_run() -> None:
    given = options("--rm", "--cidfile", "c", "--sig-proxy=false", "-q", "--crun-debug", "--authfile", "a", "x")
    assert (given.cidfile, given.sig_proxy, given.quiet, given.crun_debug) == ("c", False, True, True)
    assert given.authfile == "a"
    assert options("--quiet=false", "--rm=true", "x") == RunOptions(config=ContainerConfig(image="x"))
    with pytest.raises(UsageError, match="--rm=false is not supported: a container is always removed"):
        options("--rm=false", "x")


def test_a_root_file_system_in_place_of_an_image() -> None:
    given = options("--rootfs", "../root", "sh").config
    assert (given.rootfs, given.image, given.command) == ("/root", "", ("sh",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "5x"], "--memory"),
        (["--cpus", "x"], "--cpus"),
        (["-v", "/a"], "--volume"),
        (["-v", "/a:/b", "--tmpfs", "/b"], "duplicate mount point"),
        (["-e", "=x"], "--env"),
        (["--env-file", "none"], '--env-file "none": No such file'),
        (["--env-file", "/bad"], "line 1: not valid UTF-8"),
        (["-u", ":"], "--user"),
        (["--name", "-"], "--name"),
        (["--cap-add", "x"], "--cap-add"),
        (["--cap-drop", "x"], "--cap-drop"),
        (["--cidfile", ""], "--cidfile"),
        (["--security-opt", "seccomp=none.json"], "seccomp .*No such file"),
        (["--security-opt", "seccomp=/bad"], "UTF-8"),
        (["--network", "x"], "--network"),
        (["--stop-timeout", "soon"], "--stop-timeout"),
        (["--hostname", ""], "--hostname"),
        (["--pull", "x"], "--pull"),
        (["--label-file", "none"], "--label-file"),
    ],
)
def test_malformed_flags(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(*words)
    with pytest.raises(UsageError, match="empty"):
        options("")


def test_every_flag_of_the_help_is_used_here() -> None:
    """A flag that is accepted does something: the tables of this file name each of them."""
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    for flag in VERB.flags:
        assert f'"{flag.name}' in text, flag.name
