"""The unpacker as a process: how it follows a blob, how it is locked in, how it ends."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.native import compiled
from tests.support.tarballs import BLOCK_DEVICE, CHAR, FIFO, Entry, archive
from tests.support.unpacking import Running, accepted, refused


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """An empty directory for a layer."""
    (tmp_path / "layer").mkdir()
    return tmp_path / "layer"


def test_the_end_of_the_channel_is_the_end(layer: Path) -> None:
    blob = layer.with_name("layer.blob")
    blob.write_bytes(archive(Entry(name=b"f", content=b"x" * 100_000)))
    for sent in (None, 2, 2000):
        running = Running(blob, layer)
        if sent is not None:
            running.send(sent)
        running.channel.close()
        assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == 0


def test_following_a_blob_that_grows(layer: Path) -> None:
    content = os.urandom(3_000_000)
    whole = gzip.compress(archive(Entry(name=b"f", content=content)), 1)
    blob = layer.with_name("layer.blob")
    blob.write_bytes(b"")
    running = Running(blob, layer)
    with blob.open("ab") as file:
        for at in range(0, len(whole), 70_001):
            file.write(whole[at : at + 70_001])
            file.flush()
            running.send(file.tell())
    running.send(len(whole), ended=True)
    outcome = running.finish()
    accepted(outcome)
    assert (layer / "f").read_bytes() == content


def test_bytes_beyond_the_end_are_not_the_blobs(layer: Path) -> None:
    """A file may be larger than the blob is (room taken ahead), and must not be smaller."""
    stream = archive(Entry(name=b"f"))
    blob = layer.with_name("layer.blob")
    blob.write_bytes(stream + b"garbage")
    running = Running(blob, layer)
    running.send(len(stream), ended=True)
    outcome = running.finish()
    accepted(outcome)
    assert outcome.message["diff_id"] == f"sha256:{hashlib.sha256(stream).hexdigest()}"
    running = Running(blob, layer)
    running.send(len(stream) + 100, ended=True)
    refused(running.finish(), "fewer than announced")


def test_more_descriptors_than_an_order_has(layer: Path) -> None:
    """The kernel aligns what it passes: room for three is room for four."""
    blob = layer.with_name("layer.blob")
    blob.write_bytes(archive(Entry(name=b"f")))
    running = Running(blob, layer, more=1, size=blob.stat().st_size)
    accepted(running.finish())


def test_the_child_is_locked_in(layer: Path) -> None:
    """Seen from outside while it waits for more: its root, capabilities, filter; and no library of the layer's."""
    blob = layer.with_name("layer.blob")
    stream = archive(Entry(name=b"f", content=b"x" * 1_000_000), Entry(name=b"g"))
    blob.write_bytes(stream)
    running = Running(blob, layer)
    running.send(600_000)
    while not (layer / "f").exists():
        os.sched_yield()
    proc = Path(f"/proc/{running.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert os.path.samefile(proc / "root", layer)
    assert (
        int(status["CapEff"], 16) & ~0b1000000010000000000000000000000001011 & ~(1 << 21 | 1 << 27 | 1 << 31 | 1 << 4)
        == 0
    )
    assert (status["NoNewPrivs"], status["Seccomp"], status["Umask"]) == ("1", "2", "0000")
    threads = [path.read_text() for path in proc.glob("task/*/status")]
    assert len(threads) == 3
    for line in (f"CapEff:\t{status['CapEff']}", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert all(line in thread for thread in threads)
    assert "Max cpu time              3600                 3601" in (proc / "limits").read_text()
    maps = (proc / "maps").read_text()
    running.send(len(stream), ended=True)
    accepted(running.finish())
    assert os.fspath(layer) not in maps


def test_no_descriptor_is_of_a_file_of_the_hosts(layer: Path) -> None:
    """But for the blob, which it cannot change. Root can change the mode of /dev/null through one of it."""
    blob = layer.with_name("layer.blob")
    blob.write_bytes(b"")
    running = Running(blob, layer)
    proc = Path(f"/proc/{running.pid}")
    while "Seccomp:\t2" not in (proc / "status").read_text():
        os.sched_yield()
    kinds = {int(fd): stat.S_IFMT((proc / "fd" / fd).stat().st_mode) for fd in os.listdir(proc / "fd")}
    running.channel.close()
    os.waitpid(running.pid, 0)
    streams = dict.fromkeys((0, 1, 2), stat.S_IFIFO)
    assert kinds == {**streams, 3: stat.S_IFREG, 4: stat.S_IFDIR, 5: stat.S_IFSOCK}  # 4 is the root


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], int]:
    """What becomes of a process that is locked into a directory and then makes one call: its exit code."""
    program = compiled("attempt", ["unpack_confine"], tmp_path_factory.mktemp("attempt"))

    def attempt(directory: Path, call: str) -> int:
        return subprocess.run([program, directory, call], stderr=subprocess.PIPE, check=False).returncode

    return attempt


@pytest.mark.parametrize(
    "call",
    [
        *(
            "fork",
            "vfork",
            "thread",
            "execve",
            "execveat",
            "kill",
            "tkill",
            "tgkill",
            "pidfd_open",
            "F_SETOWN",
            "ptrace",
        ),
        *("chroot", "unshare", "mount", "open_tree", "open_by_handle_at", "socket", "connect", "setrlimit"),
        *("fchmod", "fchown", "fchownat", "fsetxattr", "futimens", "dup", "F_DUPFD", "F_DUPFD_CLOEXEC"),  # of the blob
        *("madvise", "i386", "unknown"),
    ],
)
def test_forbidden_calls_end_it(layer: Path, attempt: Callable[[Path, str], int], call: str) -> None:
    """What a taken-over process would try."""
    assert attempt(layer, call) == -signal.SIGSYS


def test_what_is_not_forbidden(layer: Path, attempt: Callable[[Path, str], int]) -> None:
    assert attempt(layer, "mkdir") == 0
    assert (layer / "fine").is_dir()
    assert attempt(layer, "abort") == -signal.SIGABRT


def test_what_it_can_take_of_the_machine(layer: Path, attempt: Callable[[Path, str], int]) -> None:
    assert attempt(layer, "memory") == 0
    assert attempt(layer, "files") == 0


def test_devices_do_nothing(layer: Path, attempt: Callable[[Path, str], int]) -> None:
    assert attempt(layer, "device") == errno.EACCES


@pytest.fixture
def unbindable(tmp_path: Path) -> Iterator[Path]:
    """A directory of a mount of which no other can be made."""
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        subprocess.run(["mount", "--make-unbindable", place], check=True)
        (place / "layer").mkdir()
        yield place / "layer"
    finally:
        subprocess.run(["umount", place], check=True)


def test_no_device_is_made_where_one_would_work(unbindable: Path, attempt: Callable[[Path, str], int]) -> None:
    """There is no mount to be had in which devices do nothing: the disk would be in reach."""
    assert attempt(unbindable, "device") == errno.EPERM
    blob = unbindable.with_name("layer.blob")
    kinds = {b"pipe": FIFO, b"char": CHAR, b"block": BLOCK_DEVICE}
    devices = [Entry(name=name, type=kind, device=(1, 3)) for name, kind in kinds.items()]
    blob.write_bytes(archive(*devices, Entry(name=b".wh.gone")))
    accepted(Running(blob, unbindable, size=blob.stat().st_size).finish())
    assert sorted(os.listdir(unbindable)) == ["gone", "pipe"]


def test_no_descriptor_leads_out(layer: Path, attempt: Callable[[Path, str], int]) -> None:
    """One of the directory itself would, whose parents are those that it has in its own mount."""
    assert attempt(layer, "descriptors") == 0
