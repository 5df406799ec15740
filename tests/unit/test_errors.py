"""Errors: what they quote of images, registries and containers steers no terminal, whoever prints them."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo import errors
from crungo.errors import CrungoError, LibcrunError, printable


@given(st.text())
def test_text_is_printable_afterwards(text: str) -> None:
    assert printable(text).isprintable()
    kept = printable(text, keep="\n")
    assert kept.count("\n") == text.count("\n")
    assert kept.replace("\n", "").isprintable()


def test_what_can_be_printed_stays() -> None:
    assert printable("größer, 大きい, \\x1b") == "größer, 大きい, \\x1b"
    assert printable("a\x1b[2J\r\nb") == "a\\x1b[2J\\r\\nb"


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CrungoError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (LibcrunError, errors.CommandFailed)])
def test_messages_and_hints_are_printable(kind: type[CrungoError]) -> None:
    error = kind("layer entry \x1b[2J\r\nevil: malformed", hint="\x9b5n")
    assert str(error) == error.message == error.args[0] == "layer entry \\x1b[2J\\r\\nevil: malformed"
    assert error.hint == "\\x9b5n"
    assert all(line.rstrip("\n").isprintable() for line in traceback.format_exception(error))


def test_libcruns_words_are_printable() -> None:
    error = LibcrunError("create", 2, "open `\x1b[2J`")
    assert str(error) == "libcrun create: open `\\x1b[2J`"
    assert error.reason == "open `\x1b[2J`", "as it came, for programs"
