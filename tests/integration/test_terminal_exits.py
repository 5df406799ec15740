"""Every way out of ``crungo run -it``: the right exit code, all output shown, the user's terminal as it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Crungo
from tests.support.image import busybox_image
from tests.support.leaks import descendants
from tests.support.stalled import Stalled
from tests.support.terminal import Terminal

CODES = [
    (["true"], 0),
    (["sh", "-c", "exit 7"], 7),
    (["sh", "-c", "exit 255"], 255),
    (["--init", "sh", "-c", "kill -TERM $$"], 143),
    (["--init", "sh", "-c", "kill -KILL $$"], 137),
    (["no-such-program"], 127),
    (["/no/such/program"], 127),
    (["/usr/local/bin/no-permission"], 126),
    (["/usr/local/bin/not-a-program"], 126),
    (["/etc"], 126),
    (["-m", "nonsense", "true"], 125),
    (["--no-such-flag", "true"], 125),
    (["--user", "nobody-here", "true"], 125),
]


def split(command: list[str], image: str) -> list[str]:
    """The image's name goes between the flags and the program."""
    at = next(place for place, word in enumerate(command) if not word.startswith("-") and word not in FLAG_VALUES)
    return [*command[:at], image, *command[at:]]


FLAG_VALUES = ("nonsense", "nobody-here")


@pytest.mark.parametrize(("command", "code"), CODES, ids=[" ".join(command) for command, _ in CODES])
def test_exit_codes_with_a_terminal(crungo: Crungo, busybox_reference: str, command: list[str], code: int) -> None:
    with crungo.terminal("run", "-it", *split(command, busybox_reference)) as terminal:
        assert terminal.wait() == code
        terminal.assert_restored()
        if code >= 125 and code < 128:
            assert terminal.text.startswith("crungo: ")
            assert b"\n\r" not in terminal.output.replace(b"\r\n", b""), "the message came in raw mode"


def test_a_killed_program(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", "echo ready; exec sleep 4321") as terminal:
        terminal.expect("ready\r\n")
        os.kill(_pid_of("sleep 4321"), signal.SIGKILL)
        assert terminal.wait() == 137
        terminal.assert_restored()


def _pid_of(command: str) -> int:
    (found,) = (process.pid for process in descendants() if process.command == command)
    return found


def test_output_that_is_still_in_the_terminal_is_shown(crungo: Crungo, busybox_reference: str) -> None:
    expected = "".join(f"{number}\n" for number in range(1, 20001)) + "last\n"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", "seq 1 20000; echo last; exit 9") as terminal:
        assert terminal.wait() == 9
        assert terminal.text == expected
    done = crungo("run", "-t", busybox_reference, "sh", "-c", "seq 1 20000; echo last; exit 9", check=9)
    assert done.stdout.replace("\r\n", "\n") == expected


def test_a_terminal_from_a_script(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "-t", busybox_reference, "sh", "-c", "tty && [ -t 2 ] && echo both >&2; exit 5", check=5)
    assert done.stdout.endswith("both\r\n")
    assert done.stderr == ""


def test_a_terminal_with_input_from_a_script_is_refused(fresh_crungo: Crungo) -> None:
    done = fresh_crungo("run", "-it", "127.0.0.1:1/never-asked", "true", input="", check=125)
    assert done.stderr.splitlines()[0] == "crungo: the input device is not a TTY"
    assert done.stdout == ""


def test_output_into_a_pipe_beside_the_terminal(crungo: Crungo, busybox_reference: str) -> None:
    command = crungo.argv("run", "-it", busybox_reference, "sh", "-c", "read line; echo got $line")
    with Terminal(["sh", "-c", '"$@" | tr a-z A-Z', "sh", *command], env=crungo.env) as terminal:
        terminal.line("something")
        terminal.expect("GOT SOMETHING")
        assert terminal.wait() == 0
        terminal.assert_restored()


STRANGE = (
    r"printf '\033[?1049h\033[?1003h\033[?1006h\033[?2004h\033[?25l\033[?1h\033=\033[31m'; stty raw -echo; "
    "echo ready; read line; exit 3"
)


def test_what_a_program_leaves_on_is_switched_off(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", STRANGE) as terminal:
        terminal.expect("ready")
        terminal.send("\n")
        assert terminal.wait() == 3
        terminal.assert_restored()  # the cursor among it
        tail = terminal.output.split(b"ready")[1]
        for sequence in (
            b"\x1b[?1003l",
            b"\x1b[?1006l",
            b"\x1b[?2004l",
            b"\x1b[?1l",
            b"\x1b>",
            b"\x1b[?1049l",
            b"\x1b[m",
        ):
            assert sequence in tail


def test_what_a_killed_program_leaves_on_is_switched_off(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", STRANGE) as terminal:
        terminal.expect("ready")
        terminal.assert_raw()
        (pid,) = (process.pid for process in descendants() if process.command.startswith("sh -c printf"))
        os.kill(pid, signal.SIGKILL)
        assert terminal.wait() == 137
        terminal.assert_restored()
        assert b"\x1b[?1049l" in terminal.output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_are_the_programs(crungo: Crungo, busybox_reference: str, signum: signal.Signals) -> None:
    name = signum.name.removeprefix("SIG")
    script = f"trap 'echo caught {name}; exit 6' {name}; echo ready; while :; do read line; done"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.process.send_signal(signum)
        terminal.expect(f"caught {name}")
        assert terminal.wait() == 6
        terminal.assert_restored()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_signals_that_are_not_handed_on_end_the_run(
    crungo: Crungo, busybox_reference: str, signum: signal.Signals
) -> None:
    script = "trap '' TERM HUP INT QUIT; echo ready; exec sleep 1000"
    with crungo.terminal("run", "-it", "--sig-proxy=false", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.assert_raw()
        terminal.process.send_signal(signum)
        assert terminal.wait() in (-signum, 128 + signum)
        terminal.assert_restored()


def test_closing_the_window_ends_the_container(crungo: Crungo, busybox_reference: str) -> None:
    script = "trap '' HUP TERM; echo ready; while :; do sleep 1; done"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.hang_up()
        assert terminal.wait() in (129, -signal.SIGHUP)


def test_closing_the_window_of_a_shell_ends_the_container(crungo: Crungo, busybox_reference: str) -> None:
    """The shell leads the session, and has told its children to ignore SIGHUP, as nohup does."""
    script = "trap '' HUP; echo ready; while :; do sleep 1; done"
    command = crungo.argv("run", "-it", busybox_reference, "sh", "-c", script)
    with Terminal(["sh", "-c", 'trap "" HUP; "$@"; exit 0', "sh", *command], env=crungo.env) as terminal:
        terminal.expect("ready")
        terminal.hang_up()
        terminal.wait()


# Before there is a container.


@pytest.fixture
def stalled(busybox: Path) -> Iterator[Stalled]:
    with Stalled(busybox_image(busybox)) as registry:
        yield registry


def test_ctrl_c_during_a_pull(fresh_crungo: Crungo, stalled: Stalled) -> None:
    with fresh_crungo.terminal("run", "-it", stalled.reference, "sh") as terminal:
        assert stalled.asked.wait(10)
        terminal.control("C")
        assert terminal.wait() in (130, -signal.SIGINT)
        terminal.assert_restored()
        assert "Traceback" not in terminal.text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_during_a_pull(fresh_crungo: Crungo, stalled: Stalled, signum: signal.Signals) -> None:
    with fresh_crungo.terminal("run", "-it", stalled.reference, "sh") as terminal:
        assert stalled.asked.wait(10)
        terminal.process.send_signal(signum)
        assert terminal.wait() in (128 + signum, -signum)
        terminal.assert_restored()
        assert "Traceback" not in terminal.text


def test_a_pull_that_fails(fresh_crungo: Crungo, stalled: Stalled) -> None:
    with fresh_crungo.terminal("run", "-it", f"{stalled.address}/no/such:image", "sh") as terminal:
        assert terminal.wait() == 125
        terminal.assert_restored()
        error, hint = terminal.text.splitlines()[-2:]
        assert error.startswith("crungo: ")
        assert hint == "hint: check its name and tag"
