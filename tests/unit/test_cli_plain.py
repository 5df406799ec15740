"""What images and registries bring, as it is shown: nothing of it steers a terminal."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.cli import run
from crungo.cli.plain import PlainText
from crungo.io.fds import pipe


@given(st.binary() | st.text().map(str.encode), st.lists(st.integers(0, 40)))
def test_chunks_do_not_matter(data: bytes, cuts: list[int]) -> None:
    whole = PlainText().feed(data, final=True)
    assert all(c.isprintable() or c in "\n\t" for c in whole.decode())
    plain = PlainText()
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    parts = [plain.feed(data[start:end]) for start, end in pairwise(places)]
    assert b"".join([*parts, plain.feed(b"", final=True)]) == whole


@pytest.mark.anyio
async def test_the_log_of_libcrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names paths and users as an image spells them."""
    reader, writer = pipe()
    shown, stderr = pipe()
    monkeypatch.setattr(run, "STDERR", stderr.fileno())
    with writer:
        os.write(writer.fileno(), "mount `/grün\x1b[2J\x9b`\n".encode() + b"cut \xc3")
    await run._show_log(reader)
    with shown, stderr:
        assert os.read(shown.fileno(), 1000) == "mount `/grün\\x1b[2J\\x9b`\ncut \\xc3".encode()
    assert reader.closed
