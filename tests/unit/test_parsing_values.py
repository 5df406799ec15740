"""The plain values: accepted forms, refused forms, and that nothing but UsageError ever comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import UsageError
from crungo.parsing import values

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1b", 1),
        ("1B", 1),
        ("1k", 1024),
        ("1K", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("256m", 256 << 20),
        ("1.5g", 3 << 29),
        ("0.5k", 512),
        ("1.0009k", 1024),
        ("2 G", 2 << 30),
        ("1t", 1 << 40),
        ("8191p", 8191 << 50),
        ("0.1", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert values.parse_size(text, flag="--memory") == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "m",
        "-1",
        "+1",
        "1x",
        "1mm",
        "1bb",
        " 1",
        "1.k",
        ".5k",
        "1e3",
        "0x10",
        "1,5g",
        "٣m",
        "8192p",
        "9" * 5000,
    ],
)
def test_malformed_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=r"^invalid value .* for --memory: "):
        values.parse_size(text, flag="--memory")


def test_memory_has_dockers_minimum_and_zero_is_no_limit() -> None:
    assert values.parse_memory("6m") == 6 << 20
    assert values.parse_memory("0") is None
    assert values.parse_memory_swap("-1") == -1
    with pytest.raises(UsageError, match=r'"5m" for --memory: too small; the least is 6m'):
        values.parse_memory("5m")
    with pytest.raises(UsageError, match="-2"):
        values.parse_memory_swap("-2")


@pytest.mark.parametrize(
    ("text", "cpus"), [("0.5", 0.5), ("2", 2.0), (".25", 0.25), ("1.", 1.0), ("0", None), ("0.01", 0.01)]
)
def test_cpus(text: str, cpus: float | None) -> None:
    assert values.parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", ".", "-1", "0.001", "nan", "inf", "1e2", "10000", "two", "1,5"])
def test_malformed_cpus(text: str) -> None:
    with pytest.raises(UsageError, match="--cpus"):
        values.parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("0", 0), ("1.5", 1.5), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("3µs", 3e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.parse_duration(text, flag="--stop-timeout") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1 s", "1d", "1m 30s", "1s" * 40, "nan"])
def test_malformed_durations(text: str) -> None:
    with pytest.raises(UsageError, match="--stop-timeout"):
        values.parse_duration(text, flag="--stop-timeout")


def test_numbers_and_booleans() -> None:
    assert values.parse_pids_limit("-1") is None
    assert values.parse_pids_limit("0") is None
    assert values.parse_pids_limit("100") == 100
    assert values.parse_bool("T", flag="--rm") is True
    assert values.parse_bool("0", flag="--rm") is False
    for text in ("-2", "x", "", "1_000", "9999999999"):
        with pytest.raises(UsageError):
            values.parse_pids_limit(text)
    with pytest.raises(UsageError, match="yes"):
        values.parse_bool("yes", flag="--rm")


def test_errors_stay_on_one_bounded_line() -> None:
    with pytest.raises(UsageError) as caught:
        values.parse_size("1\n\x1b[2J\u202e" + "x" * 9999, flag="--memory")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@given(st.integers(0, (1 << 63) - 1))
def test_bytes_round_trip(size: int) -> None:
    assert values.parse_size(str(size), flag="-m") == size


PARSERS: list[Callable[[str], object]] = [
    lambda text: values.parse_size(text, flag="-m"),
    values.parse_memory,
    values.parse_memory_swap,
    values.parse_shm_size,
    values.parse_cpus,
    values.parse_pids_limit,
    lambda text: values.parse_duration(text, flag="-t"),
    lambda text: values.parse_bool(text, flag="-t"),
]


@given(st.sampled_from(PARSERS), st.text() | st.from_regex(r"[-+0-9.bkmgBKMG smh]*", fullmatch=True))
def test_nothing_but_usage_errors(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017
