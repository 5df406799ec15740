"""Sizes, ages, tables: the words and the columns of docker."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.cli import human
from crungo.cli.output import to_json
from crungo.cli.tables import aligned, lines
from crungo.errors import UsageError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (7_733_012, "7.73MB"),
        (12_345_678, "12.3MB"),
        (999_499, "999kB"),
        (999_500, "1MB"),
        (999_999, "1MB"),
        (1_234_567_890, "1.23GB"),
        (5 * 10**21, "5e+03EB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert human.size(count) == text


def test_size_with_four_digits() -> None:
    assert human.size(16_432_100, digits=4) == "16.43MB"
    assert human.size(999_960, digits=4) == "1MB"


@given(st.integers(0, 10**18))
def test_size_is_close(count: int) -> None:
    text = human.size(count)
    number = text.rstrip("BkMGTPE")
    assert len(number) <= 4
    value = float(number) * 1000 ** ("B", "kB", "MB", "GB", "TB", "PB", "EB").index(text[len(number) :])
    assert abs(value - count) <= count * 0.006


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (59 * 86400, "8 weeks"),
        (61 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert human.duration(seconds) == text


def test_times() -> None:
    assert human.ago(None, 0) == human.moment(None) == "N/A"
    then = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert human.ago(then, then.timestamp() + 7300) == "2 hours ago"
    assert human.ago(then, then.timestamp() - 100) == "Less than a second ago"
    assert human.moment(then) == time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(then.timestamp()))
    for extreme in (datetime.min, datetime.max):
        assert human.moment(extreme.replace(tzinfo=UTC))


ROWS = [{"ID": "1", "Tag": "a-long-tag-of-mine"}, {"ID": "22", "Tag": "b"}]
TITLES = {"ID": "IMAGE ID", "Tag": "TAG"}


def test_table() -> None:
    assert lines(ROWS, ("Tag", "ID"), TITLES) == [
        "TAG                  IMAGE ID",
        "a-long-tag-of-mine   1",
        "b                    22",
    ]
    assert lines([], ("ID", "Tag"), TITLES, "table") == ["IMAGE ID   TAG"]


def test_formats() -> None:
    assert lines(ROWS, (), TITLES, "table {{.ID}}\\t{{.Tag}}")[1] == "1          a-long-tag-of-mine"
    assert lines(ROWS, (), TITLES, r"{{.ID}}\t{{.Tag}}") == ["1\ta-long-tag-of-mine", "22\tb"]
    assert [json.loads(line) for line in lines(ROWS, (), TITLES, "json")] == ROWS
    assert lines(ROWS, (), TITLES, "{{json .}}") == lines(ROWS, (), TITLES, "json")
    for nothing in ([], ROWS):
        with pytest.raises(UsageError, match="no field Nope"):
            lines(nothing, (), TITLES, "{{.Nope}}")


def test_aligned_takes_rows_of_any_length() -> None:
    assert aligned([]) == []
    assert aligned([["a"], ["b", "c"], ["0123456789", "c", "d"]]) == ["a", "b            c", "0123456789   c         d"]


def test_json_is_safe_to_print() -> None:
    text = to_json({"a": "é\x1b\x7f\x9b\u2028\ud800\u202e"}, indent=2)
    assert "é" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert json.loads(text) == {"a": "é\x1b\x7f\x9b\u2028\ud800\u202e"}


def test_counts() -> None:
    assert [human.count(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
