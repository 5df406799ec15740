"""The start of ``crungo run``: a container that is asked for, and attended to its end, without an event loop."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from crungo.cli import early
from crungo.config import ContainerConfig
from crungo.creation import Creation
from crungo.errors import ContainerError, SpawnerDied
from crungo.runtime import wire
from crungo.runtime.host import HostFacts
from crungo.runtime.requests import SpawnerProcess
from crungo.runtime.template import Template

HEAVY = {"asyncio", "anyio", "typing", "dataclasses", "inspect", "ssl", "urllib.parse", "socket"}


def test_nothing_heavy_is_imported_before_the_request() -> None:
    script = "import sys, crungo.cli.early, crungo.creation, crungo.images, crungo.image.store; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


# What is heard of the container.


class Asked:
    """A creation, and the spawner that it is sent to: our own process."""

    def __init__(self) -> None:
        ours, self.requests = wire.pair()
        self.process = SpawnerProcess(ours, os.getpid())
        config = ContainerConfig(rootfs="/", command=("true",))
        host = HostFacts.read()
        template = Template.make(config, None, root="/none", host=host)
        self.creation = Creation(self.process, config, None, template, host)
        self.creation.request.send()
        self.message, (channel, *self.fds) = wire.recv(self.requests)
        self.channel = socket.socket(fileno=channel)

    def tell(self, **event: Any) -> None:
        assert wire.send(self.channel, event)

    def close(self) -> None:
        self.creation.close()
        self.channel.close()
        self.requests.close()
        self.process.control.close()
        os.close(self.process.pidfd)
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def asked() -> Iterator[Asked]:
    made = Asked()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_request_has_three_streams_and_is_sent_once(asked: Asked) -> None:
    assert asked.message is not None
    assert (asked.message["op"], asked.message["id"]) == ("create", asked.creation.identifier)
    assert len(asked.fds) == 4
    asked.creation.request.send()
    poll = select.poll()
    poll.register(asked.requests, select.POLLIN)
    assert poll.poll(0) == []


def test_it_is_followed_to_its_end(asked: Asked, other: int) -> None:
    asked.tell(event="exited", code=3)
    asked.tell(event="gone", problem=None)
    os.eventfd_write(other, 1)
    assert asked.creation.follow(other)
    assert asked.creation.event("exited") == {"event": "exited", "code": 3}
    assert asked.creation.event("error") is None


def test_or_until_the_loop_is_there(asked: Asked, other: int) -> None:
    asked.tell(event="started")
    os.eventfd_write(other, 1)
    assert not asked.creation.follow(other)
    assert asked.creation.event("started") is not None


def test_or_until_the_spawner_dies(asked: Asked, other: int) -> None:
    asked.channel.close()
    with pytest.raises(SpawnerDied):
        asked.creation.follow(other)


def test_descriptors_that_nobody_took_over_are_closed(asked: Asked, other: int) -> None:
    reader, writer = os.pipe()
    assert wire.send(asked.channel, {"event": "created"}, [writer])
    os.close(writer)
    asked.tell(event="gone", problem=None)
    assert asked.creation.follow(other)
    asked.creation.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


# What it has written.


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writer, bytes(4096))
        os.set_blocking(self.writer, True)


@pytest.fixture
def pipes() -> Iterator[tuple[Pipe, Pipe]]:
    source, sink = Pipe(), Pipe()
    yield source, sink
    for fd in (source.reader, source.writer, sink.reader, sink.writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test has


def test_what_fits_is_written(pipes: tuple[Pipe, Pipe]) -> None:
    source, sink = pipes
    os.write(source.writer, b"x" * select.PIPE_BUF)
    os.close(source.writer)
    assert early._fits(source.reader, sink.writer)
    assert early._write(source.reader, sink.writer)
    assert os.read(sink.reader, 1 << 16) == b"x" * select.PIPE_BUF


def test_nothing_fits_everywhere(pipes: tuple[Pipe, Pipe]) -> None:
    source, sink = pipes
    sink.fill()
    os.close(source.writer)
    assert early._fits(source.reader, sink.writer)
    assert early._write(source.reader, sink.writer)


def test_what_may_have_to_wait_does_not_fit(pipes: tuple[Pipe, Pipe]) -> None:
    source, sink = pipes
    os.write(source.writer, b"x")
    near, far = socket.socketpair()
    with near, far:
        assert not early._fits(source.reader, near.fileno())
    os.write(source.writer, b"x" * select.PIPE_BUF)
    assert not early._fits(source.reader, sink.writer)
    assert len(os.read(source.reader, 1 << 16)) == select.PIPE_BUF + 1
    os.write(source.writer, b"x")
    sink.fill()
    assert not early._fits(source.reader, sink.writer)


def test_a_reader_that_is_gone_is_told_from_a_failure(pipes: tuple[Pipe, Pipe]) -> None:
    source, sink = pipes
    os.write(source.writer, b"x")
    os.close(sink.reader)
    assert not early._write(source.reader, sink.writer)
    os.write(source.writer, b"x")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(ContainerError, match="No space left"):
        early._write(source.reader, full.fileno())
