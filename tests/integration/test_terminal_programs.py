"""Programs that need a real terminal: a shell's line editing, vi, top, less, and the window's size."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command import Crungo

PROMPT = r"/ #$"


def test_a_shell_completes_and_remembers(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh") as terminal:
        terminal.expect_screen(PROMPT)
        terminal.line("mkdir /tmp/completed_directory; echo first")
        terminal.expect("\nfirst\r\n")
        terminal.line("echo second")
        terminal.expect("\nsecond\r\n")

        terminal.send("cd /tmp/compl\t")
        terminal.expect("cd /tmp/completed_directory/")
        terminal.line("")
        terminal.expect_screen("^/tmp/completed_directory #$")
        terminal.line("cd /")

        terminal.send("\x1b[A\x1b[A\x1b[A")  # up, past both cd
        terminal.expect_screen("^/ # echo second$")
        terminal.send("\x1b[D" * len("second") + "the \r")  # left, and type in the middle of the line
        terminal.expect("\nthe second\r\n")
        terminal.send("echo gone\x1b[H\x1b[3~\x1b[3~\x1b[3~\x1b[3~true #\r")  # home, delete
        terminal.expect_screen(PROMPT)
        terminal.line("exit 4")
        assert terminal.wait() == 4
        terminal.assert_restored()


def test_vi_edits_a_file_of_a_volume(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one\ntwo\nthree\n")
    with crungo.terminal("run", "-it", "-v", f"{tmp_path}:/data", busybox_reference, "vi", "/data/file") as terminal:
        terminal.expect_screen(r"^- /data/file 1/3")
        assert terminal.screen.startswith("one\ntwo\nthree\n~\n")
        terminal.send("jdd")  # the second line goes
        terminal.send("Oinserted, with ä\x1b")
        terminal.expect_screen(r"^inserted, with")
        terminal.send("\x1b[B$aX\x1b")  # down, to the end, append
        terminal.expect_screen("^threeX$")
        terminal.resize(60, 12)
        terminal.expect_screen(r"(?s)\Aone\ninserted.*\n~\n- /data/file \[Modified\]")
        terminal.line(":wq")
        assert terminal.wait() == 0
        terminal.assert_restored()
    assert file.read_text() == "one\ninserted, with ä\nthreeX\n"


def test_top_shows_the_container_alone_and_quits(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "top", "-d", "1") as terminal:
        terminal.expect_screen(r"^Mem: \d+K used")
        terminal.expect_screen(r"^ +1 +0 root +R .* top -d 1$")
        numbers = re.findall(r"^ +(\d+) +\d+ root", terminal.screen, re.MULTILINE)
        assert numbers == ["1"]
        terminal.expect(r"(?s)Mem: .*Mem: ", timeout=10)  # it goes on by itself
        terminal.send("q")
        assert terminal.wait() == 0
        terminal.assert_restored()


def test_less_pages_and_searches(crungo: Crungo, busybox_reference: str) -> None:
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", "seq 1 500 | less", rows=20) as terminal:
        terminal.expect_screen(r"\A1\n2\n(?s:.*)\n19\n")
        terminal.send(" ")
        terminal.expect_screen(r"\A20\n21\n(?s:.*)\n38\n")
        terminal.line("/444")
        terminal.expect_screen(r"\A444\n445\n")
        terminal.send("g")
        terminal.expect_screen(r"\A1\n2\n")
        terminal.send("\x1b[B")
        terminal.expect_screen(r"\A2\n3\n")
        terminal.send("q")
        assert terminal.wait() == 0
        terminal.assert_restored()


def test_the_size_is_there_before_the_program(crungo: Crungo, busybox_reference: str) -> None:
    """The very first thing that runs sees it, without waiting for anything."""
    with crungo.terminal("run", "-it", busybox_reference, "stty", "size", columns=123, rows=45) as terminal:
        assert terminal.wait() == 0
        assert terminal.text == "45 123\n"


def test_a_new_size_reaches_the_program(crungo: Crungo, busybox_reference: str) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do read line && exit 0; done"
    with crungo.terminal("run", "-it", busybox_reference, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        for columns, rows in ((100, 30), (40, 10), (200, 50)):
            terminal.resize(columns, rows)
            terminal.expect(f"{rows} {columns}\r\n")
        terminal.line("")
        assert terminal.wait() == 0
        terminal.assert_restored()


def test_the_users_terminal_type_is_the_programs(crungo: Crungo, busybox_reference: str) -> None:
    command = ["run", "-it", busybox_reference, "sh", "-c", "echo $TERM; tty; ls -l /dev/console"]
    with crungo.terminal(*command, env={"TERM": "screen-256color"}) as terminal:
        assert terminal.wait() == 0
    name, device, console = terminal.text.splitlines()
    assert name == "screen-256color"
    assert device in ("/dev/pts/0", "/dev/console")
    assert console.startswith("c")
