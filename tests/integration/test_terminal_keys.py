"""Keys with Ctrl belong to the program, not to crungo: as signals, as bytes, and as job control of the shell inside."""

from __future__ import annotations

import hashlib

import pytest

from tests.support.command import Crungo

KEYS = [("C", "INT"), ("\\", "QUIT"), ("Z", "TSTP")]


@pytest.mark.parametrize(("key", "signal"), KEYS)
def test_keys_are_signals_to_the_program(crungo: Crungo, busybox_reference: str, key: str, signal: str) -> None:
    script = f"trap 'echo got {signal}; exit 9' {signal}; echo ready; while :; do read line; done"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.control(key)
        terminal.expect(f"got {signal}")
        assert terminal.wait() == 9
        terminal.assert_restored()


def test_ctrl_d_is_the_end_of_input(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", "cat; echo over; exit 3") as terminal:
        terminal.line("line")
        terminal.expect("line\r\nline\r\n")
        terminal.control("D")
        terminal.expect("over")
        assert terminal.wait() == 3
        terminal.assert_restored()


def test_keys_are_bytes_to_a_program_in_raw_mode(crungo: Crungo, busybox_reference: str) -> None:
    script = "stty raw -echo; echo ready; head -c 9 | hexdump -C"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.send(b"\x03\x04\x11\x13\x1a\x1c\x7f\xff\x00")  # flow control, too, and what is no text
        terminal.expect(r"03 04 11 13 1a 1c 7f ff  00")
        assert terminal.wait() == 0
        terminal.assert_restored()


def test_the_keys_of_detaching_are_the_programs(crungo: Crungo, busybox_reference: str) -> None:
    """Nothing can be detached from, so that Ctrl-P is the shell's: the line before."""
    with crungo.terminal("run", "-it", busybox_reference, "sh") as terminal:
        terminal.expect_screen("/ #$")
        terminal.line("echo once")
        terminal.expect("\nonce\r\n/ # ")
        terminal.control("P")
        terminal.expect("/ # echo once")
        terminal.control("Q")
        terminal.line("")
        terminal.expect("\nonce\r\n")
        terminal.line("exit 0")
        assert terminal.wait() == 0


def test_job_control_of_the_shell_inside(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh") as terminal:
        terminal.expect_screen("/ #$")
        terminal.line("sh -c 'echo read\"\"y; exec cat'")
        terminal.expect("\nready\r\n")  # in the foreground: earlier, Ctrl-Z is the shell's, which ignores it
        terminal.control("Z")
        terminal.expect(r"Stopped +sh -c [^\r]*\r\n/ # ")
        terminal.line("fg")
        terminal.expect("fg\r\nsh -c [^\r]*\r\n")
        terminal.line("two")
        terminal.expect("two\r\ntwo\r\n")
        terminal.control("C")
        terminal.expect("/ # ")  # what is typed before the shell has the terminal back is thrown away with the job
        terminal.line("echo code $?")
        terminal.expect("\ncode 130\r\n")
        terminal.line("sleep 0.1 & wait; echo reaped")
        terminal.expect(r"\nreaped\r\n(?s:.*)/ # ")  # earlier, Ctrl-D is the end of a line for nobody
        terminal.control("D")
        assert terminal.wait() == 0
        terminal.assert_restored()


def test_what_is_typed_ahead_arrives(crungo: Crungo, busybox_reference: str) -> None:
    """Typed before there is a container, in the terminal's own line mode."""
    with crungo.terminal("run", "-it", busybox_reference, "sh") as terminal:
        terminal.line("echo typed ahead; exit 8")
        terminal.expect("\ntyped ahead\r\n")
        assert terminal.wait() == 8
        terminal.assert_restored()


def test_a_large_paste_arrives_whole(crungo: Crungo, busybox_reference: str) -> None:
    """More than the terminals on the way can hold at once."""
    script = "stty raw -echo; echo ready; head -c 100000 | md5sum"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as terminal:
        text = b"".join(b"%05d " % number for number in range(20_000))[:100_000]
        terminal.expect("ready")
        terminal.send(text)
        terminal.expect(hashlib.md5(text).hexdigest())
        assert terminal.wait() == 0
        terminal.assert_restored()
