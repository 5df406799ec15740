"""crungo-init, run as an ordinary process: a subreaper then stands in for process 1."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.events import wait_for_exit
from tests.support.terminal import Terminal

INIT = Path(__file__).resolve().parents[2] / "crungo" / "runtime" / "crungo-init"


def init(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INIT, "--", *command], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_ends_as_the_command_ended(script: str, code: int) -> None:
    done = init("sh", "-c", script)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        ("no-such-program", 127, "No such file or directory"),
        ("/no/such/program", 127, "No such file or directory"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
    ],
)
def test_a_command_that_cannot_run(command: str, code: int, reason: str) -> None:
    done = init(command)
    assert (done.returncode, done.stderr) == (code, f"crungo-init: {command}: {reason}\n")


def test_a_file_that_is_no_program_is_not_given_to_a_shell(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("echo executed by a shell\n")
    (tmp_path / "text").chmod(0o755)
    done = init(str(tmp_path / "text"))
    assert (done.returncode, done.stdout) == (126, "")
    assert "Exec format error" in done.stderr


def test_the_path_is_searched_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mode in (("denied", 0o644), ("good", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text("#!/bin/sh\necho found\n")
        (tmp_path / name / "program").chmod(mode)
    monkeypatch.setenv("PATH", f"{tmp_path}/none:{tmp_path}/denied:{tmp_path}/good:/usr/bin:/bin")
    assert init("program").stdout == "found\n"
    monkeypatch.setenv("PATH", f"{tmp_path}/denied:/usr/bin")
    assert init("program").returncode == 126


def test_no_command_is_a_failure_of_its_own() -> None:
    done = subprocess.run([INIT], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("crungo-init: usage:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_go_to_the_command(number: int) -> None:
    script = f"trap 'echo got {number}; exit 5' {number}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([INIT, "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == f"got {number}\n"
        assert process.returncode == 5


def test_what_came_before_init_was_ready_goes_to_the_command() -> None:
    """Signals are blocked when it starts, so that the kernel keeps them."""

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.kill(os.getpid(), signal.SIGTERM)

    done = subprocess.run([INIT, "--", "sleep", "1000"], preexec_fn=block, timeout=30, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_nothing_is_blocked_for_the_command() -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    done = subprocess.run(
        [INIT, "--", "grep", "SigBlk", "/proc/self/status"],
        preexec_fn=block,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == b"SigBlk:\t0000000000000000\n"


def test_orphans_are_reaped() -> None:
    # The shell in between ends at once, and its child becomes init's. Pending signals are taken lowest number
    # first: once SIGWINCH has been handed on, the SIGCHLD of the orphan's end has been dealt with.
    script = "trap 'echo winch; exit' WINCH; (sh -c 'echo $$; exec sleep 0.2' &); while :; do sleep 0.05; done"
    with subprocess.Popen([INIT, "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        assert wait_for_exit(orphan, 10)
        process.send_signal(signal.SIGWINCH)
        assert process.stdout.readline() == "winch\n"
        with pytest.raises(ProcessLookupError):
            os.kill(orphan, 0)
        assert process.wait(timeout=30) == 0


def test_the_end_of_output_is_the_commands_doing() -> None:
    """A command that closes its output ends the pipe, though process 1 and the command live on."""
    script = "exec >&- 2>&-; read line"
    with subprocess.Popen(
        [INIT, "--", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 1


def test_the_command_has_the_terminals_foreground() -> None:
    script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    with Terminal([INIT, "--", "sh", "-c", script]) as terminal:
        terminal.expect("ready")
        assert terminal.foreground != terminal.process.pid
        terminal.control("C")
        terminal.expect("interrupted")
        assert terminal.wait() == 3
