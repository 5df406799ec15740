"""Reading what registries answer: challenges, ranges, links, errors, tags."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import AuthenticationError, ImageNotFound, RegistryError
from crungo.registry.challenges import Challenge, parse_challenges
from crungo.registry.failures import refused
from crungo.registry.headers import (
    ContentRange,
    Headers,
    error_detail,
    media_type,
    next_page,
    parse_content_range,
    printable,
    said_digest,
)
from crungo.registry.taglist import read_tags

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'


def test_fields_that_come_several_times() -> None:
    headers = Headers([(b"Link", b"<a>"), (b"ETag", b"\xe4"), (b"LINK", b"<b>")])
    assert headers["link"] == "<a>, <b>"
    assert headers.lines("link") == ["<a>", "<b>"]
    assert dict(headers) == {"link": "<a>, <b>", "etag": "ä"}
    assert headers.get("location") is None
    assert headers.lines("location") == []


def test_the_usual_challenge() -> None:
    assert parse_challenges([HUB]) == [
        Challenge(
            scheme="bearer",
            params={
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:a/b:pull,push",
            },
        )
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['Basic realm="a, b", Bearer realm="c"'], [("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})]),
        (['Basic realm="a"', 'Bearer realm="b"'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (['Bearer realm="say \\"hi\\"\\\\", x=1'], [("bearer", {"realm": 'say "hi"\\', "x": "1"})]),
        (["BASIC  Realm = plain"], [("basic", {"realm": "plain"})]),
        (["Bearer realm=https://a.example/t,x=y"], [("bearer", {"realm": "https://a.example/t", "x": "y"})]),
        ([", ,Negotiate,, Basic realm=x,,"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (['Bearer realm="a", realm="b"'], [("bearer", {"realm": "a"})]),
        (['Bearer realm="never closed, x=y'], [("bearer", {})]),
        (['realm="of no challenge", Basic x=y'], [("basic", {"x": "y"})]),
        ([""], []),
        (['"""', "\\", "=,=,="], []),
    ],
)  # fmt: skip
def test_odd_challenges(lines: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(challenge.scheme, challenge.params) for challenge in parse_challenges(lines)] == expected


def test_token68() -> None:
    found = parse_challenges(["Negotiate YWJj/+==, Basic realm=x"])
    assert [(challenge.scheme, challenge.token68) for challenge in found] == [
        ("negotiate", "YWJj/+=="),
        ("basic", None),
    ]


_token = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=10)
_challenge = st.builds(
    Challenge,
    scheme=_token.map(str.lower),
    params=st.dictionaries(
        _token.map(str.lower), st.text(st.characters(min_codepoint=32, max_codepoint=126)), min_size=1
    ),
)


@given(st.lists(_challenge, max_size=4), st.booleans())
def test_what_is_written_by_the_grammar_is_read_back(challenges: list[Challenge], joined: bool) -> None:
    lines = []
    for challenge in challenges:
        quoted = [(key, value.replace("\\", r"\\").replace('"', r"\"")) for key, value in challenge.params.items()]
        lines.append(f"{challenge.scheme} " + ", ".join(f'{key}="{value}"' for key, value in quoted))
    assert parse_challenges([", ".join(lines)] if joined else lines) == challenges


@given(st.text(st.sampled_from('aB=", \t\\/~'), max_size=60))
def test_no_header_breaks_the_parser(line: str) -> None:
    for challenge in parse_challenges([line]):
        assert challenge.scheme == challenge.scheme.lower() != ""


@pytest.mark.parametrize("piece", ['"', '\\"', "a ", 'a="', "a=,", "=", "a" * 50 + " ", 'a "\\" '])
def test_a_hostile_header_is_read_in_linear_time(piece: str) -> None:
    # A quadratic parser takes minutes for these; the bound on a line's length is set aside by many lines.
    parse_challenges([piece * (16384 // len(piece))] * 20)


@given(st.integers(0, 2**60), st.integers(1, 2**60), st.none() | st.integers(0, 2**60))
def test_content_ranges_are_read_back(start: int, length: int, beyond: int | None) -> None:
    total = None if beyond is None else start + length + beyond
    text = f"bytes {start}-{start + length - 1}/{'*' if total is None else total}"
    assert parse_content_range(text) == ContentRange(start=start, end=start + length, total=total)


@pytest.mark.parametrize("text", [None, "", "bytes 5-4/10", "bytes 0-9/5", "bytes 0-9", "items 0-9/10", "bytes -9/10"])
def test_malformed_content_ranges(text: str | None) -> None:
    assert parse_content_range(text) is None


def test_an_unsatisfied_range() -> None:
    assert parse_content_range("bytes */123") == ContentRange(start=None, end=None, total=123)


BASE = "https://r.example/v2/a/tags/list?n=2"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('</v2/a/tags/list?last=b&n=2>; rel="next"', "https://r.example/v2/a/tags/list?last=b&n=2"),
        ("<?last=b>; rel=next", "https://r.example/v2/a/tags/list?last=b"),
        ('<https://other.example/x>; rel="prev", <y>; title="t"; REL="first next"', "https://r.example/v2/a/tags/y"),
        ('</x>; rel="prev"', None),
        ('</x>; rel="nextish"', None),
        ("</x>", None),
        ("", None),
        ("<https://[broken>; rel=next", None),
    ],
)
def test_links(line: str, expected: str | None) -> None:
    assert next_page([line], base=BASE) == expected


@given(st.text(max_size=100))
def test_no_link_breaks_the_parser(line: str) -> None:
    next_page([line], base=BASE)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"errors": [{"code": "DENIED", "message": "no access"}]}, "DENIED: no access"),
        ({"errors": [{"code": "UNKNOWN", "message": ""}]}, "UNKNOWN"),
        ({"details": "incorrect username or password"}, "incorrect username or password"),
        ({"error": "invalid_grant", "error_description": "expired"}, "invalid_grant: expired"),
        ({"errors": []}, ""),
        ({"errors": {"code": 3}}, ""),
        ([1], ""),
        ({"message": "a\x1b[31mred\r\nline\u202e"}, "a [31mred line"),
    ],
)
def test_details_of_errors(document: object, expected: str) -> None:
    assert error_detail(json.dumps(document).encode(), "application/json") == expected


def test_details_of_other_bodies() -> None:
    assert error_detail(b"go away\n", "text/plain; charset=utf-8") == "go away"
    assert error_detail(b"<html>", "text/html") == ""
    assert error_detail(b"[" * 60000, "application/json") == ""
    assert error_detail(b"\xff\xfe", None) == ""


@given(st.text(), st.integers(1, 50))
def test_printable_text_is_one_bounded_line(text: str, limit: int) -> None:
    line = printable(text, limit=limit)
    assert len(line) <= limit
    assert line.isprintable()


def test_refusals_are_classified() -> None:
    body = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
    error = refused("manifest x:1", "r.example", 404, headers={"content-type": "application/json"}, body=body)
    assert isinstance(error, ImageNotFound)
    assert str(error) == "manifest x:1: r.example answered 404 Not Found (MANIFEST_UNKNOWN: manifest unknown)"
    assert error.hint == "check its name and tag"
    assert refused("blob x", "r.example", 404, headers={}, body=b"").hint is None
    assert isinstance(refused("x", "r", 403, headers={}, body=b""), AuthenticationError)
    assert refused("blob x", "r", 401, headers={}, body=b"").hint == "log in first: crungo login r"
    mistaken = refused("manifest x:1", "r", 401, headers={}, body=b"").hint
    assert mistaken == "check its name; if that is right, log in: crungo login r"
    late = refused("x", "r", 429, headers={"retry-after": "7"}, body=b"")
    assert (type(late), late.status, late.retry_after) == (RegistryError, 429, 7.0)
    assert str(refused("x", "r", 799, headers={}, body=b"")) == "x: r answered 799"


def test_small_headers() -> None:
    assert media_type("Application/JSON; charset=utf-8") == "application/json"
    assert media_type(None) == ""
    assert said_digest(" sha256:" + "a" * 64) == "sha256:" + "a" * 64
    assert said_digest("sha256:xyz") is None
    assert said_digest(None) is None


def test_tags() -> None:
    def read(document: object) -> list[str]:
        return read_tags(json.dumps(document).encode(), what="tags of x", registry="r")

    assert read({"name": "x", "tags": ["a", "1.0_b-c"]}) == ["a", "1.0_b-c"]
    assert read({"name": "x", "tags": None}) == []
    documents: list[object] = [{"tags": "a"}, {"tags": ["a", 1]}, {"tags": ["a b"]}, {"tags": ["\x1b[0m"]}, [], 3]
    for broken in documents:
        with pytest.raises(RegistryError, match=r"^tags of x: r: "):
            read(broken)
    with pytest.raises(RegistryError):
        read_tags(b"[" * 100_000, what="tags of x", registry="r")
