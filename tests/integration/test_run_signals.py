"""Signals that crungo gets while a container runs, without a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.command import Crungo

TRAPPING = "trap 'echo got it; exit 7' {name}; echo ready; sleep 1000 & wait"


def start(crungo: Crungo, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a run whose first line is ``ready``, and read that."""
    process = crungo.start("run", *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CONT"])
def test_signals_are_passed_on(crungo: Crungo, busybox_reference: str, name: str) -> None:
    with start(crungo, busybox_reference, "sh", "-c", TRAPPING.format(name=name)) as process:
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.stdout is not None
        assert process.stdout.read() == b"got it\n"
        assert process.wait(30) == 7


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "USR1"])
def test_also_before_crungo_has_anything_to_do(
    crungo: Crungo, busybox_reference: str, tmp_path: Path, name: str
) -> None:
    """The program may run before the event loop that hands signals on is even imported."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"trap 'exit 7' {name}; : > /in/fifo; sleep 1000 & wait"
    with crungo.start("run", f"-v={tmp_path}:/in", busybox_reference, "sh", "-c", script) as process:
        fifo.read_bytes()  # returns when the program has opened and closed it
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(30) == 7


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_an_init_passes_them_on(crungo: Crungo, busybox_reference: str, name: str, code: int) -> None:
    """sleep has no handler: as PID 1 it would be spared, below an init it dies."""
    with start(crungo, "--init", busybox_reference, "sh", "-c", "echo ready; exec sleep 1000") as process:
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(30) == code


def test_pid_1_is_spared_what_it_does_not_handle(crungo: Crungo, busybox_reference: str) -> None:
    """As in docker: the kernel keeps such signals from the first process of a pid namespace."""
    with start(crungo, busybox_reference, "sh", "-c", TRAPPING.format(name="USR1")) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 7


def test_the_third_signal_in_vain_kills(crungo: Crungo, busybox_reference: str) -> None:
    """What has no handler as process 1 would else be out of reach. What has one is asked as often as one likes."""
    script = "echo ready; exec sleep 1000"
    with crungo.terminal("run", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.control("C")
        terminal.expect(r"crungo: the command, as process 1, ignores SIGINT .*; 2 more to kill it")
        terminal.control("C")
        terminal.expect("; 1 more to kill it")
        terminal.control("C")
        assert terminal.wait() == 137
    handling = "trap 'echo told' INT; trap 'exit 7' USR1; echo ready; while :; do sleep 1000 & wait; kill $!; done"
    with start(crungo, busybox_reference, "sh", "-c", handling) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"told\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 7


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_are_not_to_be_passed_on(crungo: Crungo, busybox_reference: str, signum: signal.Signals) -> None:
    """They end crungo, and with it the container, which hears nothing of it."""
    script = TRAPPING.format(name=signum.name.removeprefix("SIG"))
    with start(crungo, "--sig-proxy=false", busybox_reference, "sh", "-c", script) as process:
        process.send_signal(signum)
        assert process.wait(30) in (-signum, 128 + signum)
        assert process.stdout is not None
        assert process.stdout.read() == b""


def test_a_stopped_crungo_goes_on(crungo: Crungo, busybox_reference: str) -> None:
    script = "echo ready; read word; echo $word"
    with crungo.start("run", "-i", busybox_reference, "sh", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        process.stdin.write(b"on\n")
        process.stdin.close()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == b"on\n"
        assert process.wait(30) == 0


def test_signals_that_are_crungos_own_affair(crungo: Crungo, busybox_reference: str) -> None:
    """Its children, its pipes, its terminal: neither passed on nor an end."""
    script = "trap 'echo wrong' PIPE WINCH URG; " + TRAPPING.format(name="USR1")
    with start(crungo, busybox_reference, "sh", "-c", script) as process:
        for signum in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, signal.SIGURG, signal.SIGUSR1):
            process.send_signal(signum)
        assert process.wait(30) == 7
        assert process.stdout is not None
        assert process.stdout.read() == b"got it\n"


def test_what_is_ignored_stays_ignored(crungo: Crungo, busybox_reference: str) -> None:
    """nohup(1) protects the container with the command."""
    script = "trap 'echo wrong' HUP; " + TRAPPING.format(name="USR1")
    argv = ["nohup", *crungo.argv("run", busybox_reference, "sh", "-c", script)]
    with subprocess.Popen(argv, stdin=-3, stdout=-1, stderr=-3, env=crungo.environ()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == b"got it\n"
        assert process.wait(30) == 7
