"""The messages between an engine and its spawner."""

from __future__ import annotations

import array
import os
import socket
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


characters = st.characters(exclude_categories=["Cs"])
names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=32)
texts = st.dictionaries(names, st.integers(-(2**63), 2**63 - 1) | st.text(characters, max_size=80), max_size=8)


@settings(max_examples=200)
@given(texts)
def test_text_comes_back_as_it_was(message: dict[str, int | str]) -> None:
    data = wire.encode_text(message)
    assert data.isascii()
    assert all(byte == 10 or 32 <= byte < 127 for byte in data)
    assert wire.decode_text(data) == message
    assert list(wire.decode_text(data)) == list(message)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=60), texts.map(wire.encode_text)), st.data())
def test_text_has_one_encoding(data: bytes, draw: st.DataObject) -> None:
    """Whatever is not refused is what the encoder writes: also after bytes were changed, added or taken away."""
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(len(data), start + 3)))
    changed = data[:start] + draw.draw(st.sampled_from([b"", b"\n", b"0", b'"', b" ", b"\\", b"_", b"+1"])) + data[end:]
    try:
        message = wire.decode_text(changed)
    except ValueError:
        return
    assert wire.encode_text(message) == changed


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"a 1",
        b"a 01\n",
        b"a -0\n",
        b"a +1\n",
        b"a 1_0\n",
        b"a  1\n",
        b"a 1 \n",
        b"A 1\n",
        b" 1\n",
        b"a\n",
        b"a 1\n\n",
        b"a 1\na 1\n",
        b"a 1\na 2\n",
        b"a 9223372036854775808\n",
        b"a 1000000000000000000000\n",
        b'a "\n',
        b'a "x\n',
        b'a """\n',
        b'a "\\n"\n',
        b'a "\\u00004"\n',
        b'a "\\u000041"\n',  # "A" needs no escape
        b'a "\\u00d800"\n',
        b'a "\\u110000"\n',
        b'a "\\u0000E9"\n',
        b'a "\xc3\xa9"\n',
        b'a "\t"\n',
        b"a True\n",
        b"a " + b"1" * 20_000 + b"\n",
        b'a "' + b"1" * 20_000 + b'"\n',
        b"\0",
    ],
)
def test_malformed_text(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wire.decode_text(data)


@pytest.mark.parametrize("message", [{"": 1}, {"é": 1}, {"a b": 1}, {"a" * 33: 1}, {"a": 2**63}, {"a": "\ud800"}])
def test_text_that_cannot_be_sent(message: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match="text message"):
        wire.encode_text(message)


def test_text_through_a_socket() -> None:
    here, there = wire.pair()
    assert wire.send_text(here, {"event": "unpacked", "size": 7})
    assert wire.recv_text(there) == {"event": "unpacked", "size": 7}
    here.send(b"x" * (wire.TEXT_LIMIT + 9))
    with pytest.raises(ValueError, match="longer than"):
        wire.recv_text(there)
    before = set(os.listdir("/proc/self/fd"))
    here.sendmsg(
        [wire.encode_text({"a": 1})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(array.array("i", [0, 1])))]
    )
    assert wire.recv_text(there) == {"a": 1}  # descriptors that nobody asked for
    assert set(os.listdir("/proc/self/fd")) == before
    while wire.send_text(here, {"a": "x" * 10_000}):
        pass  # to a full buffer it does not wait
    here.close()
    while message := wire.recv_text(there):
        assert message == {"a": "x" * 10_000}
    assert wire.recv_text(there) is None
    assert wire.send_text(there, {"a": 1}) is False
    there.close()
