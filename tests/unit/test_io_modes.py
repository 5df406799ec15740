"""What a program leaves on is found, however its output is cut, and nothing else is undone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.io.modes import ModeTracker


def undone(*chunks: bytes) -> bytes:
    tracker = ModeTracker()
    for chunk in chunks:
        tracker.feed(memoryview(chunk))
    return tracker.undo()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"", b""),
        (b"plain \x1b[1;31mcolours\x1b[0m", b""),
        (b"\x1b[?25l", b"\x1b[?25h\x1b[m"),
        (b"\x1b[?25l working \x1b[?25h", b""),
        (b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?25l", b"\x1b>\x1b[?1l\x1b[?25h\x1b[?1049l\x1b[m"),
        (b"\x1b[?1049h\x1b[?1h\x1b=~\x1b[?1l\x1b>\x1b[?1049l", b""),
        (b"\x1b[?1000;1006h", b"\x1b[?1000l\x1b[?1006l\x1b[m"),
        (b"\x1b[?1000;1006h\x1bc", b""),
        (b"\x1b[?2004h\x1b[?12h\x1b[?9999h", b"\x1b[?2004l\x1b[m"),
        (b"\x1b[25l\x1b[?25", b""),
        (b"\x1b[?" + b"1" * 100 + b"h", b""),
        (b"\x1b[?;25l", b"\x1b[?25h\x1b[m"),
    ],
)
def test_known_outputs(output: bytes, expected: bytes) -> None:
    assert undone(output) == expected
    assert undone(*(output[i : i + 1] for i in range(len(output)))) == expected


def test_undo_leaves_nothing() -> None:
    tracker = ModeTracker()
    tracker.feed(b"\x1b[?25l\x1b=")
    assert tracker.undo()
    assert tracker.undo() == b""


@given(
    st.lists(
        st.one_of(
            st.sampled_from([b"\x1b", b"[", b"?", b"25", b";", b"1049", b"h", b"l", b"\x1b[?", b"c", b"="]),
            st.binary(max_size=3),
        )
    ),
    st.data(),
)
def test_cuts_do_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    output = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)))))
    edges = [0, *cuts, len(output)]
    assert undone(*(output[a:b] for a, b in pairwise(edges))) == undone(output)


@given(st.binary(max_size=300))
def test_what_is_undone_is_normal(output: bytes) -> None:
    tracker = ModeTracker()
    tracker.feed(output)
    assert undone(output, tracker.undo()) == b""
