"""The tests' own tools work: a leak check that finds nothing because it looks nowhere would pass every test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.events import wait_for_exit
from tests.support.image import Layer, make_image, sha256, write_layout
from tests.support.leaks import Snapshot, become_subreaper, descendants, own_store, settle, sweep
from tests.support.terminal import Terminal


def test_a_stray_grandchild_is_found_and_waited_for() -> None:
    become_subreaper()
    before = Snapshot.take()
    script = "import subprocess; subprocess.Popen(['sleep', '0.3'], start_new_session=True)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    assert [line for line in settle(before, seconds=0) if "sleep 0.3" in line]
    assert settle(before, seconds=60) == []


def test_files_and_descriptors_are_found(tmp_path: Path) -> None:
    before = Snapshot.take([tmp_path])
    (tmp_path / "left").mkdir()
    reader, writer = os.pipe()
    left = settle(before, [tmp_path], seconds=0)
    assert len([line for line in left if line.startswith("descriptor")]) == 2
    assert f"file {tmp_path / 'left'}" in left
    os.close(reader)
    os.close(writer)
    with subprocess.Popen(["sh", "-c", f"sleep 0.2; rmdir {tmp_path / 'left'}"]):
        assert settle(before, [tmp_path], seconds=5) == []


def test_only_cgroups_of_own_containers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "CGROUPS", tmp_path / "cgroup")
    own_store(tmp_path / "own")
    before = Snapshot.take()
    for number, store in enumerate(("own", "foreign")):
        identifier = f"{number:064}"
        (tmp_path / store / "containers" / identifier).mkdir(parents=True)
        group = tmp_path / "cgroup/pids" / f"crungo-{identifier}" / "exec-1"
        group.mkdir(parents=True)
        for file in (group / "cgroup.procs", group.parent / "cgroup.procs"):
            file.touch()
        (tmp_path / store / "containers" / identifier).rmdir()  # its cgroup should have gone before
    found = sorted(Snapshot.take().beyond(before).cgroups)
    own = tmp_path / "cgroup/pids" / f"crungo-{0:064}"
    assert found == [str(own), str(own / "exec-1")]
    (own.parent / f"crungo-{1:064}" / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert len(Snapshot.take().beyond(before).cgroups) == 3


def test_descendants_does_not_list_ourselves() -> None:
    assert os.getpid() not in {process.pid for process in descendants()}


def test_wait_for_exit() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        assert not wait_for_exit(process.pid, 0.01)
        process.kill()
        assert wait_for_exit(process.pid, 5)


def test_terminal_reads_types_and_reports_the_exit() -> None:
    with Terminal(["sh", "-c", "stty size; read line; echo got:$line; exit 7"], columns=100, rows=30) as terminal:
        terminal.expect(r"30 100")
        terminal.line("hello")
        terminal.expect("got:hello")
        assert terminal.wait() == 7
        assert "got:hello" in terminal.screen
        terminal.assert_restored()


def test_terminal_resize_and_interrupt_reach_the_program() -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with Terminal(["sh", "-c", script]) as terminal:
        terminal.expect("ready")
        terminal.resize(50, 10)
        terminal.expect("10 50")
        terminal.control("C")
        assert terminal.wait() == -signal.SIGINT


def test_terminal_notices_what_is_not_restored() -> None:
    with Terminal(["sh", "-c", "stty -echo raw; printf '\\033[?25l'"]) as terminal:
        assert terminal.wait() == 0
        terminal.assert_raw()
        with pytest.raises(AssertionError, match="attributes"):
            terminal.assert_restored()


def test_terminal_hang_up_ends_the_session() -> None:
    with Terminal(["sh", "-c", "echo ready; exec sleep 100"]) as terminal:
        terminal.expect("ready")
        terminal.hang_up()
        assert terminal.wait() == -signal.SIGHUP


def test_terminal_expect_fails_at_the_end_of_the_program() -> None:
    with Terminal(["echo", "something else"]) as terminal, pytest.raises(AssertionError, match="something else"):
        terminal.expect("never", timeout=5)


def test_images_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    layers = [Layer().directory("etc").file("etc/name", "x").data() for _ in range(2)]
    assert layers[0] == layers[1]
    image = make_image(layers[:1])
    assert image.digest == make_image(layers[1:]).digest
    write_layout(image, tmp_path)
    assert {f"sha256:{path.name}" for path in (tmp_path / "blobs/sha256").iterdir()} == {image.digest, *image.blobs}
    assert all(sha256(data) == digest for digest, data in image.blobs.items())


def test_sweep_ends_what_a_test_has_left() -> None:
    become_subreaper()
    before = Snapshot.take()
    subprocess.run(["sh", "-c", "sleep 100 & exit 0"], check=True)
    assert len(settle(before, seconds=0)) == 1
    sweep(before)
    assert settle(before, seconds=0) == []
