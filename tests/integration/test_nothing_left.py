"""Nothing is left, whatever ends ``crungo run``, at whatever moment: every process, mount, cgroup, file and name goes.

After each ending, all must be gone within two seconds. What a broken-off pull has fetched of a blob stays: the next
pull goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import Crungo
from tests.support.events import wait_until
from tests.support.image import Layer, busybox_image
from tests.support.leaks import CGROUPS, Snapshot, own_store, settle
from tests.support.stalled import Stalled

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
by_signal = pytest.mark.parametrize("signum", SIGNALS, ids=[signum.name for signum in SIGNALS])

BUSY = "trap 'exit 0' INT TERM HUP; touch /written; sleep 100 & (setsid sleep 100 &); sleep 0.15"
"""A program that works a little, and then ends by itself, should a signal come before it is ready for it."""


def folders(crungo: Crungo) -> list[Path]:
    """What must be as empty after a run as before: all but the images."""
    return [crungo.run, *(crungo.root / name for name in ("containers", "names", "leases", "ingest"))]


@contextlib.contextmanager
def nothing_remains(crungo: Crungo, what: str) -> Iterator[None]:
    """What is done in the block leaves nothing beyond two seconds."""
    own_store(crungo.root)
    before = Snapshot.take(folders(crungo))
    yield
    if left := settle(before, folders(crungo)):
        pytest.fail(f"left behind after {what}:\n  " + "\n  ".join(left), pytrace=False)


def end(process: subprocess.Popen[bytes], signum: int) -> None:
    process.send_signal(signum)
    process.communicate(timeout=20)


@by_signal
def test_signals_at_random_moments(crungo: Crungo, busybox_reference: str, signum: signal.Signals) -> None:
    moments = random.Random(signum.value)
    for number in range(10):
        delay = moments.uniform(0.0, 0.5)
        with nothing_remains(crungo, f"{signum.name} after {delay:.3f} s"):
            name = f"random-{number}"
            with crungo.start("run", "--name", name, busybox_reference, "sh", "-c", BUSY) as process:
                time.sleep(delay)  # a moment that nothing announces is what is wanted
                end(process, signum)
    crungo("run", "--name", "random-0", busybox_reference, "true", check=0)  # the name is free


@by_signal
def test_signals_at_random_moments_of_a_pull(tmp_path: Path, busybox_reference: str, signum: signal.Signals) -> None:
    moments = random.Random(100 + signum.value)
    (tmp_path / "run").mkdir()
    for number in range(6):
        crungo = Crungo(root=tmp_path / f"root-{number}", run=tmp_path / "run", cwd=tmp_path)
        delay = moments.uniform(0.1, 0.45)
        with (
            nothing_remains(crungo, f"{signum.name} after {delay:.3f} s"),
            crungo.start("run", busybox_reference, "sh", "-c", BUSY) as process,
        ):
            time.sleep(delay)
            end(process, signum)
    crungo("run", busybox_reference, "true", check=0)


@by_signal
def test_while_pulling(fresh_crungo: Crungo, busybox: Path, signum: signal.Signals) -> None:
    """Some bytes of a layer are there: enough for the unpacking to be under way."""
    content = os.urandom(4 << 20)
    image = busybox_image(busybox, Layer().file("first", b"x" * 100_000).file("large", content))
    ingest = fresh_crungo.root / "ingest"
    staged = [f"{ingest}/layer-{layer['digest'][7:]}/diff" for layer in image.document["layers"]]
    with (
        nothing_remains(fresh_crungo, f"{signum.name} while pulling"),
        Stalled(image, after=1 << 20) as registry,
        fresh_crungo.start("run", registry.reference, "true") as process,
    ):
        wait_until(lambda: any(os.path.exists(f"{folder}/large") for folder in staged), folders=[ingest, *staged])
        end(process, signum)
    done = fresh_crungo("run", "--pull", "never", registry.reference, "true", check=125)
    assert "No such image" in done.stderr


def _has_entry(folder: Path, prefix: str = "") -> bool:
    try:
        return any(name.startswith(prefix) for name in os.listdir(folder) if name != ".cache")
    except FileNotFoundError:
        return False


PLACES: dict[str, Callable[[Crungo], Path]] = {
    "claimed": lambda crungo: crungo.root / "containers",
    "named": lambda crungo: crungo.root / "names",
    "grouped": lambda crungo: CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS,
    "recorded": lambda crungo: crungo.run / "containers",
}


@pytest.mark.parametrize("place", PLACES)
@by_signal
def test_while_creating(crungo: Crungo, busybox_reference: str, place: str, signum: signal.Signals) -> None:
    folder = PLACES[place](crungo)
    prefix = "crungo-" if place == "grouped" else ""
    with (
        nothing_remains(crungo, f"{signum.name} when {place}"),
        crungo.start("run", busybox_reference, "sh", "-c", BUSY) as process,
    ):
        wait_until(lambda: _has_entry(folder, prefix), folders=[folder])
        end(process, signum)


@by_signal
def test_while_running(crungo: Crungo, busybox_reference: str, signum: signal.Signals) -> None:
    script = f"trap 'exit 0' INT TERM HUP; echo ready; {BUSY}; sleep 100 & wait"
    with (
        nothing_remains(crungo, f"{signum.name} while running"),
        crungo.start("run", busybox_reference, "sh", "-c", script) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        end(process, signum)


@by_signal
def test_while_cleaning_up(crungo: Crungo, busybox_reference: str, signum: signal.Signals) -> None:
    """The name goes first, and many files after it."""
    script = "i=0; while [ $i -lt 3000 ]; do mkdir d$i; : > d$i/f; i=$((i+1)); done; echo ready; read line"
    with (
        nothing_remains(crungo, f"{signum.name} while cleaning up"),
        crungo.start("run", "-i", busybox_reference, "sh", "-c", script, stdin=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.close()
        process.stdin = None
        names = crungo.root / "names"
        wait_until(lambda: not _has_entry(names), folders=[names])
        end(process, signum)


FAILURES = [
    (["no-such-program"], 127),
    (["/etc"], 126),
    (["-v", "/no/such/source:/data", "true"], 125),
    (["-w", "/etc/passwd", "true"], 125),
    (["--user", "nobody-here", "true"], 125),
    (["--device", "/dev/null:/proc/sys/x", "true"], 125),
    (["--ulimit", "nofile=64:128", "no-such-program"], 127),
]


@pytest.mark.parametrize(("command", "code"), FAILURES, ids=[" ".join(command) for command, _ in FAILURES])
def test_failed_runs(crungo: Crungo, busybox_reference: str, command: list[str], code: int) -> None:
    values = ("/no/such/source:/data", "/etc/passwd", "nobody-here", "/dev/null:/proc/sys/x", "nofile=64:128")
    at = next(place for place, word in enumerate(command) if not word.startswith("-") and word not in values)
    with nothing_remains(crungo, "a failed run"):
        done = crungo("run", *command[:at], busybox_reference, *command[at:])
        assert done.returncode == code, done.stderr


# Containers that do not want to go.

STUBBORN = {
    "daemons": "(setsid sh -c 'setsid sleep 1000 & sleep 1000' &) ; sleep 0.1; echo ready; read line",
    "ignores-signals": "trap '' HUP INT QUIT TERM; (trap '' TERM; sleep 1000) & echo ready; while :; do sleep 1; done",
    "fork-bomb": "echo ready; bomb() { bomb | bomb & }; bomb 2>/dev/null; bomb 2>/dev/null; sleep 1000",
    "stopped": "sleep 1000 & kill -STOP $!; echo ready; kill -STOP $$; sleep 1000",
    "deep-files": "i=0; while [ $i -lt 400 ]; do mkdir d && cd d; i=$((i+1)); done 2>/dev/null; echo ready; sleep 1000",
}


@pytest.mark.parametrize("script", STUBBORN.values(), ids=STUBBORN)
def test_stubborn_containers(crungo: Crungo, busybox_reference: str, script: str) -> None:
    with (
        nothing_remains(crungo, "a stubborn container"),
        crungo.start("run", "--pids-limit", "60", busybox_reference, "sh", "-c", script) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        end(process, signal.SIGKILL)


def test_a_container_that_makes_cgroups_of_its_own(crungo: Crungo, busybox_reference: str) -> None:
    script = """
        mount -o remount,rw /sys/fs/cgroup 2>/dev/null
        for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
            mount -o remount,rw $top 2>/dev/null
            mkdir -p $top/own/below 2>/dev/null && made="$made $top"
        done
        sleep 1000 &
        for top in $made; do echo $! > $top/own/below/cgroup.procs; done 2>/dev/null
        echo ready $made
        exec sleep 1000
    """
    with (
        nothing_remains(crungo, "a container with cgroups of its own"),
        crungo.start("run", "--privileged", busybox_reference, "sh", "-c", script) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:], "it could not make any, so that this tests nothing"
        end(process, signal.SIGKILL)


def test_a_frozen_container(crungo: Crungo, busybox_reference: str) -> None:
    """Frozen in a v1 cgroup, a process does not even die of SIGKILL."""
    with (
        nothing_remains(crungo, "a frozen container"),
        crungo.start("run", busybox_reference, "sh", "-c", "echo ready; exec sleep 1000") as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (identifier,) = os.listdir(crungo.root / "containers")
        switches = {"freezer.state": "FROZEN", "cgroup.freeze": "1"}
        frozen = [file for switch in switches for file in CGROUPS.glob(f"**/crungo-{identifier}/{switch}")]
        assert frozen
        for file in frozen:
            file.write_text(switches[file.name])
        end(process, signal.SIGKILL)
