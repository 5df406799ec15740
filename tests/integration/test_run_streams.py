"""Standard streams without a terminal: apart, as they come, clean in binary, ended where they end."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.support.command import Crungo

DATA = random.Random(20240229).randbytes(10 << 20)


@pytest.fixture
def fifo(tmp_path: Path) -> tuple[Path, str]:
    """A FIFO on the host and the volume through which a container's ``/shared/fifo`` is the same."""
    path = tmp_path / "shared" / "fifo"
    path.parent.mkdir()
    os.mkfifo(path)
    return path, f"{path.parent}:/shared"


def test_stdout_and_stderr_stay_apart(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", busybox_reference, "sh", "-c", "echo out; echo err >&2", check=0)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_comes_when_it_is_written(
    crungo: Crungo, busybox_reference: str, fifo: tuple[Path, str], stream: str
) -> None:
    """The program goes on only after its first line has been seen here."""
    path, volume = fifo
    to = ">&2" if stream == "stderr" else ""
    script = f"echo first {to}; read word < /shared/fifo; printf 'then %s' $word {to}"
    with crungo.start("run", "-v", volume, busybox_reference, "sh", "-c", script) as process:
        output = getattr(process, stream)
        assert output.readline() == b"first\n"
        path.write_text("second\n")
        assert output.read() == b"then second"
        assert process.wait(30) == 0


def test_a_conversation(crungo: Crungo, busybox_reference: str) -> None:
    """Input arrives when it is written, and its end when it ends."""
    script = "while read word; do echo got $word; done; echo end"
    with crungo.start("run", "-i", busybox_reference, "sh", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one", b"two", b"three"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"got " + word + b"\n"
        process.stdin.close()
        assert process.stdout.read() == b"end\n"
        assert process.wait(30) == 0


def test_the_end_of_input_is_passed_on(crungo: Crungo, busybox_reference: str) -> None:
    assert crungo("run", "-i", busybox_reference, "cat", input="x\n", check=0).stdout == "x\n"
    assert crungo("run", "-i", busybox_reference, "cat", input="", check=0).stdout == ""


def test_ten_megabytes_both_ways(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo.binary("run", "-i", busybox_reference, "cat", input=DATA, check=0)
    assert done.stdout == DATA
    assert done.stderr == b""


def test_ten_megabytes_on_each_output_at_once(crungo: Crungo, busybox_reference: str) -> None:
    script = "cat /dev/zero | head -c 10485760 & tr '\\0' x < /dev/zero | head -c 10485760 >&2; wait"
    done = crungo.binary("run", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout == bytes(10 << 20)
    assert done.stderr == b"x" * (10 << 20)


def test_input_and_output_may_be_files(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(DATA)
    with (
        source.open("rb") as read,
        target.open("wb") as write,
        crungo.start("run", "-i", busybox_reference, "cat", stdin=read, stdout=write) as process,
    ):
        assert process.wait(60) == 0
    assert target.read_bytes() == DATA


def test_output_is_appended_where_the_file_is_open_for_that(
    crungo: Crungo, busybox_reference: str, tmp_path: Path
) -> None:
    target = tmp_path / "log"
    target.write_text("before\n")
    with target.open("ab") as write, crungo.start("run", busybox_reference, "echo", "after", stdout=write) as process:
        assert process.wait(30) == 0
    assert target.read_text() == "before\nafter\n"


def test_nothing_is_read_without_interactive(crungo: Crungo, busybox_reference: str) -> None:
    """The program reads an empty input, and the caller's is left for whoever reads next."""
    command = f"{' '.join(crungo.argv('run', busybox_reference, 'cat'))}; echo then; cat"
    done = subprocess.run(
        ["sh", "-c", command],
        input=b"for the next\n",
        capture_output=True,
        env=crungo.environ(),
        timeout=60,
        check=True,
    )
    assert done.stdout == b"then\nfor the next\n"


def test_a_program_that_does_not_read(crungo: Crungo, busybox_reference: str) -> None:
    """It ends, although its input does not; and more input than anything buffers is no error."""
    with crungo.start("run", "-i", busybox_reference, "true", stdin=subprocess.PIPE) as process:
        assert process.wait(30) == 0
    assert crungo.binary("run", "-i", busybox_reference, "true", input=DATA, check=0).stderr == b""


def test_a_program_that_closes_its_output_early(crungo: Crungo, busybox_reference: str, fifo: tuple[Path, str]) -> None:
    """The caller sees the end of the stream while the program still runs."""
    path, volume = fifo
    script = "echo last; exec >&- ; read word < /shared/fifo; echo $word >&2; exit 4"
    with crungo.start("run", "-v", volume, busybox_reference, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"last\n"
        path.write_text("bye\n")
        assert process.stderr.readline() == b"bye\n"
        assert process.wait(30) == 4


def test_a_reader_that_has_enough(crungo: Crungo, busybox_reference: str) -> None:
    """``| head -1``: the container, whose PID 1 does not feel SIGPIPE, ends with its reader."""
    command = f"{{ {' '.join(crungo.argv('run', busybox_reference, 'yes'))}; echo $? >&2; }} | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=crungo.environ(), timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"y\n", b"141\n")


def test_a_full_disk(crungo: Crungo, busybox_reference: str) -> None:
    with open("/dev/full", "wb") as full, crungo.start("run", busybox_reference, "yes", stdout=full) as process:
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"crungo: write output: No space left on device\n")
        assert process.wait(30) == 125


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed(crungo: Crungo, busybox_reference: str, closed: str) -> None:
    """No file that crungo opens takes the place of a standard stream that was closed."""
    command = f"{' '.join(crungo.argv('run', '-i', busybox_reference, 'sh', '-c'))} 'cat; echo o; echo e >&2; exit 3'"
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"],
        input=b"",
        capture_output=True,
        env=crungo.environ(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == (b"" if " >" in f" {closed}" else b"o\n")
    assert done.stderr == (b"" if "2>" in closed else b"e\n")


def test_the_last_words_are_not_lost(crungo: Crungo, busybox_reference: str) -> None:
    for size in (1, 4096, 65536, 65537, 1 << 20):
        done = crungo.binary("run", busybox_reference, "head", "-c", str(size), "/dev/zero", check=0)
        assert len(done.stdout) == size


def test_what_is_left_running_does_not_hold_the_output(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", busybox_reference, "sh", "-c", "sleep 1000 & echo done", check=0)
    assert done.stdout == "done\n"


def test_a_container_gets_pipes_and_nothing_else(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    """Neither a file or terminal of the caller, nor a descriptor that the caller has left open."""
    target = tmp_path / "out"
    script = "ls -l /proc/1/fd; true"  # PID 1 is the shell, which waits
    master, slave = os.openpty()
    with target.open("wb") as write, (tmp_path / "secret").open("wb") as secret:
        for interactive in ([], ["-i"]):
            with crungo.start(
                "run", *interactive, busybox_reference, "sh", "-c", script,
                stdin=slave, stdout=write, stderr=slave, pass_fds=[secret.fileno()],
            ) as process:  # fmt: skip
                assert process.wait(30) == 0
    os.close(master)
    os.close(slave)
    found = [line.split()[-3:] for line in target.read_text().splitlines() if "->" in line]
    kinds = [(fd, what.partition(":")[0]) for fd, _, what in found]
    outputs = [("1", "pipe"), ("2", "pipe")]
    assert kinds == [("0", "/dev/null"), *outputs, ("0", "pipe"), *outputs]


def test_dev_null_is_the_containers_own(crungo: Crungo, busybox_reference: str) -> None:
    """Root inside could change the mode of the host's."""
    done = crungo("run", busybox_reference, "stat", "-L", "-c", "%d %i", "/proc/self/fd/0", "/dev/null", check=0)
    first, second = done.stdout.splitlines()
    status = os.stat("/dev/null")
    assert first == second != f"{status.st_dev} {status.st_ino}"
