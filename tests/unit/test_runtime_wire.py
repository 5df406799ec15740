"""The messages between an engine and its spawner."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crungo.runtime import wire

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=50) | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=10), values, max_size=6))
def test_a_message_arrives_as_it_was_sent(message: dict[str, Any]) -> None:
    here, there = wire.pair()
    try:
        assert wire.send(here, message)
        assert wire.recv(there) == (message, [])
    finally:
        here.close()
        there.close()


@pytest.mark.parametrize("size", [0, 1, wire.INLINE_LIMIT - 64, wire.INLINE_LIMIT, 5_000_000])
def test_descriptors_come_with_messages_of_any_size(size: int) -> None:
    here, there = wire.pair()
    reader, writer = os.pipe()
    try:
        assert wire.send(here, {"data": b"x" * size}, [writer, reader])
        message, fds = wire.recv(there)
        assert message == {"data": b"x" * size}
        assert len(fds) == 2
        os.write(fds[0], b"through")
        assert os.read(fds[1], 10) == b"through"
        assert not any(os.get_inheritable(fd) for fd in fds)
    finally:
        for fd in (reader, writer, *fds):
            os.close(fd)
        here.close()
        there.close()


def test_the_end_is_told_apart_from_a_message() -> None:
    here, there = wire.pair()
    wire.send(here, {})
    here.close()
    assert wire.recv(there) == ({}, [])
    assert wire.recv(there) == (None, [])
    assert wire.send(there, {"anybody": True}) is False
    there.close()


def test_last_words_are_heard_though_something_was_left_unread() -> None:
    here, there = wire.pair()
    wire.send(here, {"unread": 1})
    wire.send(there, {"last": "words"})
    there.close()  # with a message in its queue: the kernel reports a reset first
    assert wire.recv(here) == ({"last": "words"}, [])
    assert wire.recv(here) == (None, [])
    here.close()


def test_too_many_descriptors_are_an_error_and_none_leaks() -> None:
    here, there = wire.pair()
    before = set(os.listdir("/proc/self/fd"))
    null = os.open("/dev/null", os.O_RDONLY)
    wire.send(here, {}, [null] * (wire.MAX_FDS + 4))
    os.close(null)
    with pytest.raises(OSError, match="cut off"):
        wire.recv(there)
    assert set(os.listdir("/proc/self/fd")) == before
    here.close()
    there.close()
