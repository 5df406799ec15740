"""The exit code of ``crungo run`` without a terminal, the command's own, 128+n, 125, 126, 127; and what is said."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.image import Layer

SIGSYS_PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_KILL_PROCESS"}],
}


@pytest.fixture(scope="module")
def programs(push_image: PushImage) -> str:
    """An image of programs that cannot be executed, each for a reason of its own."""
    layer = (
        Layer()
        .file("bin/lost", "#!/nowhere/interpreter\n", 0o755)
        .file("bin/empty", "", 0o755)
        .file("bin/broken", b"\x7fELF" + bytes(60), 0o755)
        .symlink("bin/dangling", "/nowhere/program")
        .symlink("bin/around", "around")
        .directory("first/sub")
        .file("first/tool", "#!/bin/sh\necho first\n", 0o644)
        .file("second/tool", "#!/bin/sh\necho second\n", 0o755)
    )
    return push_image("exit/programs", layer)


@pytest.mark.parametrize("code", [0, 1, 2, 42, 124, 125, 126, 127, 128, 137, 255])
def test_the_commands_own_code(crungo: Crungo, busybox_reference: str, code: int) -> None:
    done = crungo("run", busybox_reference, "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("name", ["HUP", "INT", "ABRT", "KILL", "SEGV", "PIPE", "TERM", "USR1", "RTMIN"])
def test_a_child_of_init_that_dies_of_a_signal(crungo: Crungo, busybox_reference: str, name: str) -> None:
    """The kernel spares PID 1 its own signals: below an init the program itself can die of them."""
    number = signal.SIGRTMIN if name == "RTMIN" else signal.Signals[f"SIG{name}"]
    done = crungo("run", "--init", busybox_reference, "sh", "-c", f"kill -{number:d} $$")
    assert done.returncode == 128 + number


def test_pid_1_itself_dies_of_a_signal(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    """A filter of system calls kills even PID 1, which kill(2) from inside cannot."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(SIGSYS_PROFILE))
    done = crungo("run", "--security-opt", f"seccomp={profile}", busybox_reference, "uname")
    assert done.returncode == 128 + signal.SIGSYS


def test_pid_1_killed_from_outside(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    cidfile = tmp_path / "id"
    with crungo.start(
        "run", "--cidfile", cidfile, busybox_reference, "sh", "-c", "echo up; exec sleep 1000"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for pid in _processes(cidfile.read_text()):
            os.kill(pid, signal.SIGKILL)
        assert process.wait(30) == 128 + signal.SIGKILL


def _processes(identifier: str) -> list[int]:
    """The processes of a container, by its cgroup."""
    found = next(Path("/sys/fs/cgroup").glob(f"**/crungo-{identifier}/cgroup.procs"))
    return [int(line) for line in found.read_text().split()]


NOT_FOUND = "executable file not found in $PATH"
NO_FILE = "no such file or directory"


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("nope", 127, NOT_FOUND),
        ("", 127, NOT_FOUND),
        ("/nope", 127, NO_FILE),
        ("./nope", 127, NO_FILE),
        ("/etc/passwd/x", 127, NO_FILE),
        ("dangling", 127, NOT_FOUND),
        ("/bin/dangling", 127, NO_FILE),
        ("lost", 127, NOT_FOUND),
        ("/bin/lost", 127, NO_FILE),
        ("/usr", 126, "permission denied"),
        (".", 126, "permission denied"),
        ("no-permission", 126, "permission denied"),
        ("/usr/local/bin/no-permission", 126, "permission denied"),
        ("not-a-program", 126, "exec format error"),
        ("/usr/local/bin/not-a-program", 126, "exec format error"),
        ("/bin/empty", 126, "exec format error"),
        ("/bin/broken", 126, "exec format error"),
        ("/bin/around", 126, "too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_executed(crungo: Crungo, programs: str, command: str, code: int, why: str) -> None:
    done = crungo("run", programs, command, "argument")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1] == f'crungo: exec "{command}": {why}'


def test_the_path_is_searched_to_its_end(crungo: Crungo, programs: str) -> None:
    """What may not be executed in one directory does not hide what may in the next (execvp(3))."""
    done = crungo("run", "-e", "PATH=/first:/second:/bin", programs, "tool", check=0)
    assert done.stdout == "second\n"
    crungo("run", "-e", "PATH=/first", programs, "tool", check=126)
    crungo("run", "-e", "PATH=", programs, "tool", check=127)


def test_the_current_directory_counts_where_the_path_says_so(crungo: Crungo, programs: str) -> None:
    assert crungo("run", "-w", "/second", programs, "./tool", check=0).stdout == "second\n"
    crungo("run", "-w", "/second", programs, "tool", check=127)


@pytest.mark.parametrize(
    ("command", "code"), [("nope", 127), ("/nope", 127), ("/usr", 126), ("no-permission", 126), ("not-a-program", 126)]
)
def test_the_same_below_an_init(crungo: Crungo, busybox_reference: str, command: str, code: int) -> None:
    done = crungo("run", "--init", busybox_reference, command)
    assert (done.returncode, done.stdout) == (code, "")
    assert command in done.stderr


def test_a_user_who_may_not_execute_the_program(crungo: Crungo, push_image: PushImage) -> None:
    reference = push_image("exit/private", Layer().file("bin/private", "#!/bin/sh\n", 0o700))
    crungo("run", reference, "private", check=0)
    done = crungo("run", "-u", "1000", reference, "/bin/private")
    assert (done.returncode, done.stderr) == (126, 'crungo: exec "/bin/private": permission denied\n')


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-u", "nobody"], 'user "nobody": no such user in the /etc/passwd of the container'),
        (["-u", "root:nogroup"], 'group "nogroup": no such group in the /etc/group of the container'),
        (["--group-add", "nogroup"], 'group "nogroup": no such group in the /etc/group of the container'),
        (["-w", "/etc/passwd"], "/etc/passwd"),
        (["-v", "/etc/hostname:/etc"], "/etc"),
        (["-v", "/etc:/etc/passwd"], "etc/passwd"),
        (["--sysctl", "net.ipv4.no_such_thing=1"], "no_such_thing"),
        (["--cidfile", "/no/such/folder"], "--cidfile /no/such/folder: No such file or directory"),
    ],
)
def test_what_crungo_cannot_do(crungo: Crungo, busybox_reference: str, options: list[str], why: str) -> None:
    """125, with one line that names the thing, after which nothing is left."""
    done = crungo("run", *options, busybox_reference, "true")
    assert (done.returncode, done.stdout) == (125, "")
    first, *rest = done.stderr.splitlines()
    assert first.startswith("crungo: ")
    assert why in first
    assert rest in ([], ["", "Run 'crungo run --help' for more information"])


def test_no_command_at_all(crungo: Crungo, push_image: PushImage) -> None:
    reference = push_image("exit/nothing", config={"Env": []})
    for arguments in ([reference], ["--entrypoint", "", reference]):
        done = crungo("run", *arguments)
        assert done.returncode == 125
        assert "no command: the image has no default command, and none was given" in done.stderr
