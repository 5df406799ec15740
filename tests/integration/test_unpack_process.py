"""The unpacker as a process: how it follows a blob, how it is locked in, how it ends."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import socket
from pathlib import Path

import pytest

from crungo.runtime._native import lib
from tests.support.tarballs import Entry, archive
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
            running.send(available=sent)
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
            running.send(available=file.tell())
    running.send(end=len(whole))
    outcome = running.finish()
    accepted(outcome)
    assert (layer / "f").read_bytes() == content


def test_bytes_beyond_the_end_are_not_the_blobs(layer: Path) -> None:
    """A file may be larger than the blob is (room taken ahead), and must not be smaller."""
    stream = archive(Entry(name=b"f"))
    blob = layer.with_name("layer.blob")
    blob.write_bytes(stream + b"garbage")
    running = Running(blob, layer)
    running.send(end=len(stream))
    outcome = running.finish()
    accepted(outcome)
    assert outcome.message["diff_id"] == f"sha256:{hashlib.sha256(stream).hexdigest()}"
    running = Running(blob, layer)
    running.send(end=len(stream) + 100)
    refused(running.finish(), "fewer than announced")


def test_the_child_is_locked_in(layer: Path) -> None:
    """Seen from outside while it waits for more: its root, capabilities, filter; and no library of the layer's."""
    blob = layer.with_name("layer.blob")
    stream = archive(Entry(name=b"f", content=b"x" * 1_000_000), Entry(name=b"g"))
    blob.write_bytes(stream)
    running = Running(blob, layer)
    running.send(available=600_000)
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
    maps = (proc / "maps").read_text()
    running.send(end=len(stream))
    accepted(running.finish())
    assert os.fspath(layer) not in maps


def test_forbidden_calls_end_it(layer: Path) -> None:
    """What a taken-over process would try."""

    def attempt(body: str) -> int:
        pid = os.fork()
        if pid == 0:
            descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY)
            if lib.crungo_unpack_confine(descriptor, 0) == 0:
                exec(body, {"os": os, "socket": socket})
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    for body in (
        "os.fork()",
        "os.execv('/x', ['x'])",
        "os.kill(1, 0)",
        "os.chroot('.')",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    ):
        assert attempt(body) == -signal.SIGSYS, body
    assert attempt("os.mkdir('fine')") == 0
    assert (layer / "fine").is_dir()
    device = "os.mknod('null', 0o20666, os.makedev(1, 3))\n"
    assert attempt(device + "try: os.open('null', os.O_RDONLY)\nexcept PermissionError: os._exit(7)") == 7
