"""What a container's process starts with: environment, user, directory, program; from flags and from the image."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.image import Layer

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(crungo: Crungo, *arguments: str, **env: str) -> dict[str, str]:
    """What ``env`` prints."""
    done = crungo("run", *arguments, "env", env=env, check=0)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_the_default_environment(crungo: Crungo, busybox_reference: str) -> None:
    found = environment(crungo, busybox_reference)
    hostname = found.pop("HOSTNAME")
    assert found == {"PATH": PATH, "IMAGE": "busybox", "HOME": "/root", "container": "crungo"}
    assert len(hostname) == 12


def test_env(crungo: Crungo, busybox_reference: str) -> None:
    """The caller's value without one, none where the caller has none, the last of two."""
    flags = [
        "-e",
        "A=1",
        "--env=A=2",
        "-eB=x=y z",
        "-e",
        "C",
        "-e",
        "UNKNOWN",
        "-e",
        "IMAGE",
        "-e",
        "EMPTY=",
        "-e",
        "Ü=é",
    ]
    found = environment(crungo, *flags, busybox_reference, C="the caller's")
    assert {name: found.get(name) for name in ("A", "B", "C", "UNKNOWN", "IMAGE", "EMPTY", "Ü")} == {
        "A": "2", "B": "x=y z", "C": "the caller's", "UNKNOWN": None, "IMAGE": None, "EMPTY": "", "Ü": "é",
    }  # fmt: skip


def test_env_file(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("# a comment\nA=1\nB='quotes stay'\n\nC\nUNKNOWN\nD=first\n")
    second.write_text("D=second\nE= spaces stay \n")
    flags = ["--env-file", str(first), "--env-file", str(second), "-e", "A=flag"]
    found = environment(crungo, *flags, busybox_reference, C="the caller's")
    assert found["A"] == "flag"
    assert found["B"] == "'quotes stay'"
    assert found["C"] == "the caller's"
    assert found["D"] == "second"
    assert found["E"] == " spaces stay "
    assert "UNKNOWN" not in found


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-u", "app"], "1000 1000 1000 44 50"),
        (["-u", "1000"], "1000 1000 1000 44 50"),
        (["-u", "app:video"], "1000 44 44"),
        (["-u", "1000:50"], "1000 50 50"),
        (["-u", "daemon"], "1 1 1"),
        (["-u", "4321"], "4321 0 0"),
        (["-u", "4321:8765"], "4321 8765 8765"),
        (["-u", "4321:staff"], "4321 50 50"),
        (["-u", "4294967294:4294967294"], "4294967294 4294967294 4294967294"),
        (["-u", "0"], "0 0 0"),
        (["--group-add", "video", "--group-add", "77"], "0 0 0 44 77"),
        (["-u", "app", "--group-add", "daemon"], "1000 1000 1 44 50 1000"),
    ],
)
def test_users(crungo: Crungo, busybox_reference: str, flags: list[str], expected: str) -> None:
    done = crungo("run", *flags, busybox_reference, "sh", "-c", "echo $(id -u) $(id -g) $(id -G)", check=0)
    uid, gid, *groups = expected.split()
    found = done.stdout.split()
    assert (found[0], found[1], sorted(found[2:])) == (uid, gid, sorted(groups))


@pytest.mark.parametrize(
    ("user", "home"),
    [("root", "/root"), ("app", "/home/app"), ("1000", "/home/app"), ("4321", "/"), ("1", "/usr/sbin")],
)
def test_home(crungo: Crungo, busybox_reference: str, user: str, home: str) -> None:
    assert environment(crungo, "-u", user, busybox_reference)["HOME"] == home


@pytest.mark.parametrize(
    "passwd", [Layer().entry("etc/passwd", tarfile.FIFOTYPE, 0o644), Layer().symlink("etc/passwd", "/dev/zero")]
)
def test_a_passwd_that_has_no_end(crungo: Crungo, push_image: PushImage, passwd: Layer) -> None:
    """To open the one waits for ever, and the other has a line that memory does not hold."""
    reference = push_image("process/endless", passwd)
    assert environment(crungo, "-m", "64m", reference)["HOME"] == "/"


def test_a_home_that_is_set_stays(crungo: Crungo, busybox_reference: str) -> None:
    assert environment(crungo, "-e", "HOME=/elsewhere", busybox_reference)["HOME"] == "/elsewhere"


def test_the_working_directory_is_made(crungo: Crungo, busybox_reference: str) -> None:
    script = "pwd; stat -c '%a %u' ."
    assert crungo("run", busybox_reference, "pwd", check=0).stdout == "/\n"
    done = crungo("run", "-w", "/new/deep/../dir", "-u", "app", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout == "/new/dir\n755 0\n"


def test_a_working_directory_that_only_root_may_enter(crungo: Crungo, busybox_reference: str) -> None:
    assert crungo("run", "-u", "app", "-w", "/root", busybox_reference, "pwd", check=0).stdout == "/root\n"


@pytest.fixture(scope="module")
def configured(push_image: PushImage) -> str:
    """An image that says all that it can."""
    config = {
        "Env": ["PATH=/bin", "A=image", "B=two", "B=again", "HOSTNAME=image"],
        "Entrypoint": ["sh", "-c", 'echo "$@" in $PWD as $(id -u):$(id -g)', "name"],
        "Cmd": ["default", "words"],
        "User": "app:video",
        "WorkingDir": "/srv/work",
        "StopSignal": "SIGINT",
        "Labels": {"a": "b"},
        "ExposedPorts": {"80/tcp": {}},
    }
    return push_image("process/configured", config=config)


@pytest.mark.parametrize(
    ("flags", "words", "expected"),
    [
        ([], [], "default words in /srv/work as 1000:44"),
        ([], ["other"], "other in /srv/work as 1000:44"),
        (["-u", "root"], [], "default words in /srv/work as 0:0"),
        (["-w", "/tmp"], [], "default words in /tmp as 1000:44"),
        (["-u", "", "-w", ""], [], "default words in /srv/work as 1000:44"),
        (["--entrypoint", "echo"], [], ""),
        (["--entrypoint", "echo"], ["only", "these"], "only these"),
        (["--entrypoint", ""], ["echo", "plain"], "plain"),
        (["--entrypoint", '["echo", "a list", "of"]'], ["words"], "a list of words"),
    ],
)
def test_what_the_image_says(
    crungo: Crungo, configured: str, flags: list[str], words: list[str], expected: str
) -> None:
    assert crungo("run", *flags, configured, *words, check=0).stdout == expected + "\n"


def test_the_environment_of_the_image(crungo: Crungo, configured: str) -> None:
    found = environment(crungo, "--entrypoint", "", "-e", "A=flag", configured)
    assert {name: found[name] for name in ("PATH", "A", "B", "HOSTNAME")} == {
        "PATH": "/bin", "A": "flag", "B": "again", "HOSTNAME": "image",
    }  # fmt: skip


def test_an_image_without_a_path(crungo: Crungo, push_image: PushImage) -> None:
    found = environment(crungo, push_image("process/bare", config={}))
    assert found["PATH"] == PATH


def test_an_image_without_passwd_and_group(crungo: Crungo, push_image: PushImage) -> None:
    reference = push_image("process/nobody", Layer().whiteout("etc/passwd").whiteout("etc/group"))
    assert crungo("run", "-u", "5:6", reference, "sh", "-c", "id -u; id -g; echo $HOME", check=0).stdout == "5\n6\n/\n"
    assert "no such user" in crungo("run", "-u", "app", reference, "true", check=125).stderr


def test_users_are_looked_up_inside_the_image_only(crungo: Crungo, push_image: PushImage, tmp_path: Path) -> None:
    """An absolute link is one within the root, and nothing beyond it answers."""
    outside = tmp_path / "passwd"
    outside.write_text("intruder:x:0:0::/:/bin/sh\n")
    reference = push_image("process/linked", Layer().symlink("etc/passwd", str(outside)))
    assert "no such user" in crungo("run", "-u", "intruder", reference, "true", check=125).stderr
    inside = push_image("process/link", Layer().file("else", "who:x:7:8::/:\n").symlink("etc/passwd", "/else"))
    assert crungo("run", "-u", "who", inside, "sh", "-c", "id -u; id -g", check=0).stdout == "7\n8\n"


def test_everything_after_the_image_is_the_commands(crungo: Crungo, busybox_reference: str) -> None:
    words = ["-it", "--rm", "--", "--name", "x", "", "a b", "*", "$HOME", "ü"]
    done = crungo("run", "--rm", busybox_reference, "sh", "-c", 'printf "<%s>" "$@"', "sh", *words, check=0)
    assert done.stdout == "".join(f"<{word}>" for word in words)
    done = crungo("run", "--", busybox_reference, "echo", "--", "-n", check=0)
    assert done.stdout == "-- -n\n"


def test_short_flags_together(crungo: Crungo, busybox_reference: str) -> None:
    script = "cat; pwd; id -u; echo $A"
    done = crungo("run", "-iu1000", "-w=/tmp", "-eA=1", busybox_reference, "sh", "-c", script, input="x\n", check=0)
    assert done.stdout == "x\n/tmp\n1000\n1\n"


def test_init_is_the_first_process(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "--init", busybox_reference, "sh", "-c", "cat /proc/1/comm; echo $$", check=0)
    name, pid = done.stdout.split()
    assert name == "crungo-init"
    assert pid != "1"
    assert crungo("run", busybox_reference, "sh", "-c", "echo $$", check=0).stdout == "1\n"


def test_init_reaps_orphans(crungo: Crungo, busybox_reference: str) -> None:
    """The loop ends when no zombie is left."""
    script = (
        "for i in 1 2 3 4 5; do (true & ); done; while grep -q '^State:.Z' /proc/[0-9]*/status; do :; done; echo none"
    )
    assert crungo("run", "--init", busybox_reference, "sh", "-c", script, check=0).stdout == "none\n"


def test_signal_state_is_clean(crungo: Crungo, busybox_reference: str) -> None:
    """Nothing that Python or the helper ignores or blocks is ignored or blocked inside."""
    done = crungo("run", busybox_reference, "grep", "^Sig", "/proc/self/status", check=0)
    masks = {name: int(mask, 16) for name, mask in (line.split(":") for line in done.stdout.splitlines()[1:])}
    assert masks["SigBlk"] == masks["SigCgt"] == masks["SigIgn"] == 0


def test_the_umask(crungo: Crungo, busybox_reference: str) -> None:
    assert crungo("run", busybox_reference, "sh", "-c", "umask", check=0).stdout == "0022\n"


def test_limits_are_the_callers(crungo: Crungo, busybox_reference: str) -> None:
    """What the helper raises for itself does not reach the container."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = crungo("run", busybox_reference, "sh", "-c", "ulimit -n; ulimit -Hn", check=0)
    assert done.stdout == f"{soft}\n{hard}\n"


def test_few_descriptors_are_enough(crungo: Crungo, busybox_reference: str) -> None:
    import subprocess

    script = 'ulimit -n 40; exec "$@"'
    command = ["sh", "-c", script, "sh", *crungo.argv("run", busybox_reference, "sh", "-c", "ulimit -n")]
    done = subprocess.run(command, env=crungo.environ(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40\n", "")
